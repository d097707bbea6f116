//! The program as a newcomer meets it: the bare start, its commands, its errors, its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};

use super::support::http::{Answer, Http, sse_data};
use super::support::process::Process;
use super::support::{Faregate, Options, Postgres, Redis, Sim, eventually, eventually_blocking, free_port};

const DEADLINE: Duration = Duration::from_secs(30);

/// A folder, and the program started in it.
struct Folder {
    dir: tempfile::TempDir,
    ports: [u16; 2],
}

impl Folder {
    fn new() -> Folder {
        Folder { dir: tempfile::tempdir().unwrap(), ports: [free_port(), free_port()] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Nothing is set but the ports, which others on this machine may use.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_faregate"));
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FAREGATE_"));
        ours.for_each(|(name, _)| {
            command.env_remove(name);
        });
        command.env("FAREGATE_LISTEN", format!("127.0.0.1:{}", self.ports[0]));
        command.env("FAREGATE_ADMIN_LISTEN", format!("127.0.0.1:{}", self.ports[1]));
        command.current_dir(self.dir.path()).args(arguments);
        command
    }

    /// Bare `faregate`, and what it said once it served.
    fn start(&self) -> (Process, String) {
        let process = Process::spawn(self.command(&[]), "KILL");
        let said = eventually_blocking(DEADLINE, "the greeting", || {
            let lines = process.lines();
            lines.iter().any(|line| line.starts_with("Operators:")).then(|| lines.join("\n"))
        });
        (process, said)
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments))
    }
}

/// A command that ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn of(mut command: Command) -> Ended {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn done(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.done()).unwrap()
    }
}

/// The line that is to be pasted, as a shell takes it apart.
fn curl_words(said: &str) -> Vec<String> {
    let line = said.lines().find(|line| line.trim_start().starts_with("curl ")).expect("a curl line");
    let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}; {line}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Does what curl would do with these words.
async fn curl(words: &[String]) -> Answer {
    let mut request = Request::post(&words[0]);
    let mut body = String::new();
    for option in words[1..].chunks(2) {
        match option[0].as_str() {
            "-H" => {
                let (name, value) = option[1].split_once(": ").unwrap();
                request = request.header(name, value);
            }
            "-d" => body = option[1].clone(),
            other => panic!("unknown option {other}"),
        }
    }
    Http::new().call(request.body(Full::new(Bytes::from(body))).unwrap()).await
}

fn end(process: &mut Process) {
    process.signal("TERM");
    let status = process.wait(DEADLINE);
    assert!(status.success(), "{status}\n{}", process.lines().join("\n"));
}

fn available(folder: &Folder, user: &str) -> f64 {
    folder.run(&["balance", user, "--json"]).json()["available"].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_start_serves_the_pasted_line_and_a_second_start_keeps_balances_and_key() {
    let folder = Folder::new();
    let started = Instant::now();
    let (mut process, said) = folder.start();
    let start = started.elapsed();
    let words = curl_words(&said);
    let answer = curl(&words).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["choices"][0]["message"]["content"].is_string(), "{}", answer.text());
    assert_eq!(answer.header("x-credits-remaining"), "4");
    assert!(!answer.header("x-request-id").is_empty());
    assert!(said.contains("client = OpenAI(base_url=\"http://127.0.0.1:"), "{said}");
    assert!(said.contains(&format!("http://127.0.0.1:{}", folder.ports[1])), "{said}");
    assert!(folder.path("faregate-data/admin-token").exists());
    assert_eq!(available(&folder, "demo"), 4.0);
    println!("start {} ms, idle {} KiB", start.as_millis(), resident_kib(process.pid()));
    end(&mut process);
    assert!(!folder.path("faregate-data/admin.json").exists());

    let (mut process, said) = folder.start();
    assert_eq!(curl_words(&said), words, "the same key and addresses");
    assert_eq!(curl(&words).await.header("x-credits-remaining"), "3");
    for _ in 0..3 {
        assert_eq!(curl(&words).await.status, 200);
    }
    assert_eq!(curl(&words).await.status, 402);
    end(&mut process);
    assert_eq!(available(&folder, "demo"), 0.0, "asked of the store, as nothing runs");
}

fn resident_kib(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).unwrap_or("?").to_owned()
}

#[test]
fn two_processes_do_not_share_a_data_directory() {
    let folder = Folder::new();
    let (mut process, _) = folder.start();
    let second = folder.run(&["serve"]);
    assert_eq!(second.code, 75, "{second:?}");
    assert!(second.stderr.contains(&format!("is in use by process {}", process.pid())), "{second:?}");
    process.kill9();
    let (mut process, _) = folder.start();
    end(&mut process);
}

#[test]
fn wrong_settings_are_told_and_end_with_64() {
    let folder = Folder::new();
    let mut command = folder.command(&[]);
    command.env("FAREGATE_UPSTREM_URL", "http://127.0.0.1:1").env("FAREGATE_WORKERS", "two");
    let ended = Ended::of(command);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(
        ended.stderr.contains("FAREGATE_UPSTREM_URL is not a setting; the nearest is FAREGATE_UPSTREAM_URL"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("FAREGATE_WORKERS: `workers` must be a whole number"), "{ended:?}");
    let ended = folder.run(&["serv"]);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("serve"), "{ended:?}");
    assert!(!folder.path("faregate-data").exists(), "nothing was begun");
}

#[test]
fn without_an_upstream_the_demo_is_for_loopback_and_empty_stores_only() {
    let folder = Folder::new();
    let mut command = folder.command(&["serve"]);
    command.env("FAREGATE_LISTEN", format!("0.0.0.0:{}", folder.ports[0]));
    let ended = Ended::of(command);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("FAREGATE_UPSTREAM_URL"), "{ended:?}");
    folder.run(&["user", "create", "ann"]).done();
    let ended = folder.run(&["serve"]);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("the store has users already"), "{ended:?}");
}

#[test]
fn with_an_upstream_an_empty_store_says_how_to_begin() {
    let folder = Folder::new();
    let mut command = folder.command(&[]);
    command.env("FAREGATE_UPSTREAM_URL", "http://127.0.0.1:1");
    let mut process = Process::spawn(command, "KILL");
    let said = eventually_blocking(DEADLINE, "the greeting", || {
        let said = process.lines().join("\n");
        said.contains("Operators:").then_some(said)
    });
    assert!(said.contains("faregate user create ann") && said.contains("faregate key create ann"), "{said}");
    assert!(!said.contains("fg_live_"), "{said}");
    end(&mut process);
}

#[test]
fn check_tells_what_would_run_or_what_is_wrong() {
    let folder = Folder::new();
    let text = folder.run(&["check"]).done();
    assert!(text.contains("embedded") && text.contains("/v1/messages"), "{text}");
    assert!(!folder.path("faregate-data").exists(), "it touches nothing");
    std::fs::write(folder.path("good.toml"), "[upstream]\nurl = \"https://api.example.com\"\napi_key = \"hunter2\"\n")
        .unwrap();
    let text = folder.run(&["check", "--config", "good.toml"]).done();
    assert!(text.contains("https://api.example.com") && !text.contains("hunter2"), "{text}");
    std::fs::write(folder.path("bad.toml"), "[routes.openai]\nprice = \"gold\"\nprefix = \"v1\"\n").unwrap();
    let ended = folder.run(&["check", "--config", "bad.toml"]);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("bad.toml:2: `routes.openai.price` names no price"), "{ended:?}");
    assert!(ended.stderr.contains("bad.toml:3: `routes.openai.prefix` must begin with /"), "{ended:?}");
    let ended = folder.run(&["check", "--config", "none.toml"]);
    assert_eq!(ended.code, 64, "{ended:?}");
    let defaults = folder.run(&["check", "--defaults"]).done();
    assert!(defaults.contains("[plans.free]"), "{defaults}");
}

/// Every command, asked of whoever answers.
fn commands(folder: &Folder, user: &str) {
    let text = folder.run(&["user", "create", user, "--email", "a@example.com"]).done();
    assert!(text.contains("credits.available") && text.contains('5'), "{text}");
    let taken = folder.run(&["user", "create", user]);
    assert_eq!(taken.code, 1, "{taken:?}");
    let key = folder.run(&["key", "create", user, "--name", "laptop", "--json"]).json();
    assert!(key["key"].as_str().unwrap().starts_with("fg_live_"), "{key}");
    let id = key["id"].as_str().unwrap();
    let keys = folder.run(&["key", "list", user]).done();
    assert!(keys.contains(id) && keys.contains("laptop") && !keys.contains(key["key"].as_str().unwrap()), "{keys}");
    folder.run(&["key", "revoke", user, "--id", id]).done();
    let grant = folder.run(&["grant", user, "0.25", "--note", "sorry", "--json"]).done();
    assert!(grant.contains("0.25"), "{grant}");
    assert_eq!(available(folder, user), 5.25);
    let refused = folder.run(&["grant", user, "-1"]);
    assert_eq!(refused.code, 64, "{refused:?}");
    assert!(folder.run(&["balance", user]).done().contains("5.25"));
    folder.run(&["user", "freeze", user]).done();
    let shown = folder.run(&["user", "show", user, "--json"]).json();
    assert_eq!(shown["status"], "frozen", "{shown}");
    assert_eq!(shown["credits"]["available"], 0, "{shown}");
    folder.run(&["user", "unfreeze", user]).done();
    assert_eq!(available(folder, user), 5.25);
    assert!(folder.run(&["user", "list"]).done().contains(user));
    assert_eq!(folder.run(&["usage", user, "--json"]).json()["data"], json!([]));
    assert_eq!(folder.run(&["usage", user]).done().trim(), "none");
    let service = folder.run(&["key", "create", "--service", "--name", "web", "--json"]).json();
    assert!(service["key"].as_str().unwrap().starts_with("fg_srv_"), "{service}");
    assert!(folder.run(&["key", "list", "--service"]).done().contains("web"));
    folder.run(&["key", "revoke", "--service", "--id", service["id"].as_str().unwrap()]).done();
    let unknown = folder.run(&["balance", "nobody"]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.stderr.contains("no such user"), "{unknown:?}");
    let bad = folder.run(&["balance", "not an id"]);
    assert_eq!(bad.code, 64, "{bad:?}");
}

#[test]
fn every_command_works_while_nothing_runs_and_while_the_gateway_does() {
    let folder = Folder::new();
    assert_eq!(folder.run(&["health"]).code, 69);
    let migrated = folder.run(&["migrate"]).done();
    assert!(migrated.contains("up to date"), "{migrated}");
    commands(&folder, "ann");
    // The demo does not start over a store with users.
    let mut command = folder.command(&["serve"]);
    command.env("FAREGATE_UPSTREAM_URL", "http://127.0.0.1:1");
    let mut process = Process::spawn(command, "KILL");
    eventually_blocking(DEADLINE, "health", || (folder.run(&["health"]).code == 0).then_some(()));
    commands(&folder, "bob");
    assert_eq!(available(&folder, "ann"), 5.25, "granted while nothing ran");
    end(&mut process);
    assert_eq!(available(&folder, "bob"), 5.25, "granted while the gateway ran");
}

/// A command that finds the lock held and no answer says so.
#[test]
fn a_gateway_that_does_not_answer_is_told() {
    let folder = Folder::new();
    let (mut process, _) = folder.start();
    let file = folder.path("faregate-data/admin.json");
    let mut admin: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let dead: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    admin["address"] = json!(dead.to_string());
    std::fs::write(&file, admin.to_string()).unwrap();
    let ended = folder.run(&["balance", "demo"]);
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.stderr.contains(&dead.to_string()), "{ended:?}");
    end(&mut process);
}

async fn drains(options: Options) {
    let mut faregate = Faregate::start(options);
    let key = faregate.user("ann", "5").await;
    let body = json!({"model": "sim@chunk-ms=50,tokens=40", "stream": true, "messages": [{"role": "user", "content": "Hello"}]});
    let mut stream = faregate.http.stream(&faregate.url("/v1/chat/completions"), &key, &body).await;
    assert_eq!(stream.status, 200);
    let first = stream.chunk().await.unwrap().unwrap();
    faregate.signal("TERM");
    eventually(DEADLINE, "the drain", || async { faregate.output().contains("draining").then_some(()) }).await;
    let (rest, complete) = stream.rest().await;
    assert!(complete, "the stream was cut off");
    let all = [first.to_vec(), rest].concat();
    assert_eq!(sse_data(&all).last().map(String::as_str), Some("[DONE]"));
    let status = faregate.wait(DEADLINE);
    assert_eq!(status.code(), Some(0), "{}", faregate.output());
    faregate.restart();
    assert_eq!(faregate.available("ann").await, 4.0);
    assert_eq!(faregate.usage_of("ann", 1).await.len(), 1);
    assert_eq!(faregate.terminate().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_stream_finish_and_charges_it_once() {
    drains(Options::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_stream_finish_and_charges_it_once_over_redis() {
    let redis = Redis::start();
    drains(Options::new().ledger(redis.url())).await;
}

/// As it is meant to run: replicas side by side, over Redis and Postgres.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_balances_keys_and_usage() {
    let (redis, postgres, sim) = (Redis::start(), Postgres::start(), Sim::start());
    let options = || Options::new().ledger(redis.url()).store(postgres.url()).upstream(sim.url());
    let mut first = Faregate::start(options());
    let mut second = Faregate::start(options());
    let key = first.user("ann", "5").await;
    let body = json!({"model": "sim", "messages": [{"role": "user", "content": "Hello"}]});
    for (replica, remaining) in [(&second, "4"), (&first, "3"), (&second, "2")] {
        let answer = replica.http.post(&replica.url("/v1/chat/completions"), &key, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-credits-remaining"), remaining);
    }
    assert_eq!(first.usage_of("ann", 3).await.len(), 3);
    assert_eq!(second.available("ann").await, 2.0);
    let (stdout, stderr, done) = second.command(&["grant", "ann", "1.5", "--json"]);
    assert!(done, "{stdout}{stderr}");
    assert_eq!(first.available("ann").await, 3.5);
    let (keys, ..) = first.command(&["key", "list", "ann", "--json"]);
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let (_, stderr, done) = first.command(&["key", "revoke", "ann", "--id", keys["data"][0]["id"].as_str().unwrap()]);
    assert!(done, "{stderr}");
    eventually(Duration::from_secs(1), "the revocation on the other replica", || async {
        let answer = second.http.post(&second.url("/v1/chat/completions"), &key, &body).await;
        (answer.status == 401).then_some(())
    })
    .await;
    assert_eq!(first.terminate().code(), Some(0), "{}", first.output());
    assert_eq!(second.terminate().code(), Some(0), "{}", second.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_and_what_was_held_goes_back() {
    let mut faregate = Faregate::start(Options::new());
    let key = faregate.user("ann", "5").await;
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let body = json!({"model": "sim@chunk-ms=100,tokens=400", "stream": true, "messages": messages});
    let mut stream = faregate.http.stream(&faregate.url("/v1/chat/completions"), &key, &body).await;
    assert_eq!(stream.status, 200);
    stream.chunk().await.unwrap().unwrap();
    faregate.signal("TERM");
    eventually(DEADLINE, "the drain", || async { faregate.output().contains("draining").then_some(()) }).await;
    faregate.signal("INT");
    assert_eq!(faregate.wait(DEADLINE).code(), Some(130), "{}", faregate.output());
    faregate.restart();
    assert_eq!(faregate.available("ann").await, 5.0, "the unfinished answer was not charged");
    assert_eq!(faregate.held("ann").await, 0.0);
    assert_eq!(faregate.terminate().code(), Some(0));
}

#[test]
fn paths_in_the_greeting_are_those_of_the_settings() {
    let folder = Folder::new();
    let mut command = folder.command(&[]);
    command.env("FAREGATE_DATA_DIR", "elsewhere/data");
    let mut process = Process::spawn(command, "KILL");
    eventually_blocking(DEADLINE, "the token's place", || {
        process.lines().iter().any(|line| line.contains("elsewhere/data/admin-token")).then_some(())
    });
    assert!(Path::new(&folder.path("elsewhere/data/faregate.db")).exists());
    end(&mut process);
}
