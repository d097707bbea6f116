//! The commands on the pages, run as they stand.
//!
//! Of a page, the `sh` blocks after a line `<!-- run -->` are one script, run in an empty folder with the program in the
//! PATH. Addresses on the page become those of servers that the test starts itself. What a `text` block after a line
//! `<!-- prints -->` shows must come out of the block before it.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::read;
use crate::support::{Postgres, Redis, Sim, Stripe, free_port, reaper};

/// A page's script, and what is to be seen.
fn script(page: &str) -> (String, Vec<String>) {
    let (mut script, mut wanted) = (String::new(), Vec::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let run = line == "<!-- run -->";
        if !run && line != "<!-- prints -->" {
            continue;
        }
        let opening = lines.next().unwrap_or_default();
        assert!(opening.starts_with("```"), "no block after {line}");
        for line in lines.by_ref().take_while(|line| *line != "```") {
            if run {
                script.push_str(line);
                script.push('\n');
            } else {
                wanted.push(line.to_owned());
            }
        }
    }
    (script, wanted)
}

/// Runs a page with some of its addresses replaced. Gives back what it printed.
async fn run(path: &str, replaced: &[(&str, String)]) -> String {
    let (script, wanted) = script(&read(path));
    run_script(path, script, wanted, replaced).await
}

async fn run_script(path: &str, mut script: String, wanted: Vec<String>, replaced: &[(&str, String)]) -> String {
    assert!(!script.is_empty(), "{path} has no commands");
    for (written, real) in replaced {
        script = script.replace(written, real);
    }
    for port in ["8080", "9090"] {
        let own = free_port().to_string();
        script = script.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{own}"));
        let name = if port == "8080" { "FAREGATE_LISTEN" } else { "FAREGATE_ADMIN_LISTEN" };
        script = format!("export {name}=127.0.0.1:{own}\n{script}");
    }
    // Whatever a page starts in the background ends with it.
    let ending = "trap 'status=$?; kill $(jobs -p) 2>/dev/null || true; wait; exit $status' EXIT\n";
    let dir = tempfile::Builder::new().prefix("faregate-docs").tempdir().unwrap();
    reaper::remove(dir.path());
    let file = dir.path().join("page.sh");
    std::fs::write(&file, format!("set -euo pipefail\n{ending}{script}")).unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_faregate")).parent().unwrap();
    let mut command = Command::new("bash");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FAREGATE_") {
            command.env_remove(&name);
        }
    }
    let path_of = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let out = std::fs::File::create(dir.path().join("out")).unwrap();
    command.arg(&file).current_dir(dir.path()).env("PATH", path_of).stdin(Stdio::null());
    command.stdout(out.try_clone().unwrap()).stderr(out).process_group(0);
    let dir_path = dir.path().to_owned();
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let ended = crate::support::eventually_blocking(Duration::from_secs(60), "the page's commands end", || {
            child.try_wait().unwrap()
        });
        drop(child);
        ended
    });
    let status = ended.await.unwrap();
    let printed = std::fs::read_to_string(dir_path.join("out")).unwrap();
    assert!(status.success(), "{path}: {status}\n{script}\n--- printed:\n{printed}");
    for line in wanted {
        assert!(printed.contains(&line), "{path} says that this is printed, and it is not: {line}\n{printed}");
    }
    printed
}

#[tokio::test]
async fn quick_start() {
    let (sim, stripe, redis) = (Sim::start(), Stripe::start(), Redis::start());
    let postgres = Postgres::start();
    let replaced = [
        ("http://127.0.0.1:8081", sim.url()),
        ("http://127.0.0.1:8082", stripe.url().to_owned()),
        ("redis://127.0.0.1:6379", redis.url()),
        ("postgres://faregate@127.0.0.1:5432/faregate", postgres.url()),
    ];
    run("docs/quick-start.md", &replaced).await;
}

#[tokio::test]
async fn readme_and_guides() {
    let sim = Sim::start();
    let replaced = [("https://api.openai.com", sim.url())];
    for page in ["docs/pricing.md", "docs/clients.md", "docs/operations.md"] {
        run(page, &replaced).await;
    }
}

/// A page's blocks of one language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(opening) = lines.next() {
        let Some(kind) = opening.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if kind == language {
            found.push(block.join("\n"));
        }
    }
    found
}

/// The README's commands, in the order of the page: `cargo run` is the program that the tests are built with, `make test`
/// is what runs this.
#[tokio::test]
async fn readme() {
    let page = read("README.md");
    let sim = Sim::start();
    let (shell, mut prompts) = (blocks(&page, "sh"), blocks(&page, ""));
    prompts.retain(|block| block.starts_with("$ "));
    assert_eq!((shell.len(), prompts.len()), (2, 1), "the README has other commands than this test knows");
    let mut script = String::new();
    let mut running = false;
    for line in [&shell[0], &prompts[0], &shell[1]].into_iter().flat_map(|block| block.lines()) {
        let command = line.split(" #").next().unwrap_or_default().trim_end();
        if let Some(settings) = command.strip_suffix("cargo run --release") {
            if running {
                script.push_str("kill $! && wait $!\n");
            }
            script.push_str(&format!("{settings}faregate > greeting.txt 2> faregate.log &\n"));
            script.push_str("curl -fsS --retry 30 --retry-delay 1 --retry-all-errors http://127.0.0.1:9090/readyz\n");
            running = true;
        } else if command != "make test" {
            script.push_str(&command.strip_prefix("$ ").unwrap_or(command).replace("curl ", "curl -fsS "));
            script.push('\n');
        }
    }
    let key = "\"Authorization: Bearer $(grep -o 'fg_live_[A-Za-z0-9_-]*' greeting.txt | head -n 1)\"";
    let script = script.replace("'Authorization: Bearer fg_live_…'", key).replace("sk-…", "sk-test");
    let wanted = ["chat.completion", "fg_live_"].map(str::to_owned).to_vec();
    run_script("README.md", script, wanted, &[("https://api.openai.com", sim.url())]).await;
}

/// The README's settings are right, whole, as they stand there.
#[test]
fn readme_settings() {
    let settings = blocks(&read("README.md"), "toml").concat().replace('…', "1");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("faregate.toml");
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_faregate"));
    let output = command.args(["check", "--config"]).arg(&file).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Nobody adds a command to the pages of the first day that is never run. The exceptions build or install what the tests
/// have, or are spoken in another terminal, and start servers that the tests start themselves.
#[test]
fn every_command_of_the_first_day_is_run() {
    for (path, exceptions) in [
        ("docs/quick-start.md", &["cargo build --release"][..]),
        ("docs/pricing.md", &[]),
        ("docs/clients.md", &[]),
        ("docs/operations.md", &[]),
    ] {
        let page = read(path);
        let (run, _) = script(&page);
        for block in blocks(&page, "sh") {
            let first = block.lines().next().unwrap_or_default();
            assert!(run.contains(&block) || exceptions.contains(&first), "{path}: never run:\n{block}");
        }
    }
}

#[test]
fn blocks_are_found() {
    let page = "a\n<!-- run -->\n```sh\none\ntwo\n```\nb\n```sh\nnot this\n```\n<!-- prints -->\n```text\nthree\n```\n";
    assert_eq!(script(page), ("one\ntwo\n".to_owned(), vec!["three".to_owned()]));
}
