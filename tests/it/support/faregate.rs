//! The real binary, started as a user would.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::http::{Answer, Http, get_status, request};
use super::process::Process;
use super::{eventually, eventually_blocking, free_port, reaper};

const ADMIN_TOKEN: &str = "the-admin-token-of-the-tests-only";
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What to start it with. Nothing set: embedded ledger, SQLite in a temporary folder, the built-in demo upstream.
#[derive(Debug, Clone, Default)]
pub struct Options {
    env: Vec<(String, String)>,
    config: Option<String>,
    /// Instead of `serve`.
    command: Option<&'static [&'static str]>,
}

impl Options {
    pub fn new() -> Options {
        Options::default()
    }

    /// An environment variable, such as `FAREGATE_WORKERS`.
    pub fn env(mut self, name: &str, value: impl ToString) -> Options {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// A setting by its path, such as `plans.free.signup_credits`.
    pub fn set(self, path: &str, value: impl ToString) -> Options {
        let name = format!("FAREGATE_{}", path.to_uppercase().replace('.', "__"));
        self.env(&name, value)
    }

    /// A settings file, as TOML.
    pub fn config(mut self, toml: &str) -> Options {
        self.config = Some(toml.to_owned());
        self
    }

    /// Started so, instead of by `serve`.
    pub fn command(mut self, arguments: &'static [&'static str]) -> Options {
        self.command = Some(arguments);
        self
    }

    pub fn ledger(self, url: impl ToString) -> Options {
        self.env("FAREGATE_LEDGER_URL", url)
    }

    pub fn store(self, url: impl ToString) -> Options {
        self.env("FAREGATE_STORE_URL", url)
    }

    pub fn upstream(self, url: impl ToString) -> Options {
        self.env("FAREGATE_UPSTREAM_URL", url)
    }
}

pub struct Faregate {
    process: Process,
    options: Options,
    listen: SocketAddr,
    admin: SocketAddr,
    pub http: Http,
    dir: std::sync::Arc<tempfile::TempDir>,
}

impl Faregate {
    /// Starts it and waits until it is ready.
    pub fn start(options: Options) -> Faregate {
        let mut faregate = Faregate::launch(options);
        faregate.wait_until_ready();
        faregate
    }

    /// Starts it and waits for nothing.
    pub fn launch(options: Options) -> Faregate {
        let dir = tempfile::Builder::new().prefix("faregate-data").tempdir().unwrap();
        reaper::remove(dir.path());
        if let Some(config) = &options.config {
            std::fs::write(dir.path().join("faregate.toml"), config).unwrap();
        }
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (listen, admin) = (local(free_port()), local(free_port()));
        let process = spawn(&options, dir.path(), listen, admin);
        Faregate { process, options, listen, admin, http: Http::new(), dir: dir.into() }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listen
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    pub fn admin_token(&self) -> &str {
        ADMIN_TOKEN
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it printed and logged.
    pub fn output(&self) -> String {
        self.process.lines().join("\n")
    }

    pub fn wait_until_ready(&mut self) {
        eventually_blocking(START_DEADLINE, "faregate is ready", || {
            assert!(self.process.ended().is_none(), "faregate ended:\n{}", self.output());
            (get_status(self.admin, "/readyz")? == 200).then_some(())
        });
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    pub fn signal(&mut self, signal: &str) {
        self.process.signal(signal);
    }

    /// SIGTERM, and waits for the drain.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.process.wait(Duration::from_secs(60))
    }

    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let ended = self.process.wait(deadline);
        self.process.read_all();
        ended
    }

    /// Starts it again on the same data and addresses, and waits until it is ready. It must have ended.
    pub fn restart(&mut self) {
        assert!(self.process.ended().is_some(), "end it first");
        self.process = spawn(&self.options, self.dir.path(), self.listen, self.admin);
        self.http = Http::new();
        self.wait_until_ready();
    }

    /// Other settings from the next [`Faregate::restart`] on.
    pub fn reconfigure(&mut self, change: impl FnOnce(Options) -> Options) {
        self.options = change(self.options.clone());
    }

    /// A command of the binary (`["balance", "ann"]`) with the same settings: stdout, stderr, whether it succeeded.
    pub fn command(&self, arguments: &[&str]) -> (String, String, bool) {
        let mut command = command(&self.options, self.dir.path(), self.listen, self.admin);
        let output = command.args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr), output.status.success())
    }

    /// What `faregate audit` says of all accounts; an error where books differ or could not be compared.
    pub fn audit(&self) -> Result<String, String> {
        let (out, err, clean) = self.command(&["audit"]);
        if clean { Ok(out) } else { Err(format!("{out}{err}")) }
    }

    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let url = format!("http://{}{path}", self.admin);
        self.http.call(request(method, &url, ADMIN_TOKEN, body.as_ref())).await
    }

    /// A user with exactly so many credits, and a key of theirs. `credits` is a decimal number: `"5"`, `"0.25"`.
    pub async fn user(&self, id: &str, credits: &str) -> String {
        let answer = self.admin(Method::POST, "/admin/v1/users", Some(json!({ "id": id }))).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let given = self.available(id).await;
        let wanted: f64 = credits.parse().unwrap();
        assert!(given <= wanted, "the plan gives {given} already: set plans.free.signup_credits");
        if wanted > given {
            self.grant(id, &(wanted - given).to_string()).await;
        }
        self.key(id).await
    }

    pub async fn key(&self, user: &str) -> String {
        let answer =
            self.admin(Method::POST, &format!("/admin/v1/users/{user}/keys"), Some(json!({"name": "t"}))).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    pub async fn grant(&self, user: &str, credits: &str) -> Value {
        let amount: serde_json::Number = serde_json::from_str(credits).unwrap();
        let path = format!("/admin/v1/users/{user}/grants");
        let answer = self.admin(Method::POST, &path, Some(json!({ "amount": amount }))).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    /// The user with `credits` (live from the ledger) and `grants`.
    pub async fn show(&self, user: &str) -> Value {
        let answer = self.admin(Method::GET, &format!("/admin/v1/users/{user}"), None).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    pub async fn available(&self, user: &str) -> f64 {
        self.show(user).await["credits"]["available"].as_f64().unwrap()
    }

    pub async fn held(&self, user: &str) -> f64 {
        self.show(user).await["credits"]["held"].as_f64().unwrap()
    }

    /// All usage rows, newest first, over as many pages as there are.
    pub async fn usage(&self, user: &str) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/admin/v1/users/{user}/usage?limit=500{cursor}");
            let page = self.admin(Method::GET, &path, None).await;
            assert_eq!(page.status, 200, "{}", page.text());
            let page = page.json();
            rows.extend(page["data"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return rows,
            }
        }
    }

    /// Waits until there are `count` usage rows.
    pub async fn usage_of(&self, user: &str, count: usize) -> Vec<Value> {
        eventually(Duration::from_secs(10), &format!("{count} usage rows of {user}"), || async {
            let rows = self.usage(user).await;
            (rows.len() >= count).then_some(rows)
        })
        .await
    }

    /// A metric's value, its labels as they are printed: `faregate_streams`, `faregate_requests_total{outcome="ok",…}`.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = self.http.get(&format!("http://{}/metrics", self.admin), "").await;
        let text = answer.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }
}

fn spawn(options: &Options, dir: &Path, listen: SocketAddr, admin: SocketAddr) -> Process {
    let mut command = command(options, dir, listen, admin);
    command.args(options.command.unwrap_or(&["serve"]));
    // Asked to end, it drains; but a dead test binary leaves nobody to wait for that.
    Process::spawn(command, "KILL")
}

fn command(options: &Options, dir: &Path, listen: SocketAddr, admin: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faregate"));
    // Settings of whoever runs the tests stay out.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FAREGATE_") {
            command.env_remove(&name);
        }
    }
    command.env("FAREGATE_DATA_DIR", dir.join("data"));
    command.env("FAREGATE_LISTEN", listen.to_string());
    command.env("FAREGATE_ADMIN_LISTEN", admin.to_string());
    command.env("FAREGATE_ADMIN_TOKEN", ADMIN_TOKEN);
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    if options.config.is_some() {
        command.arg("--config").arg(dir.join("faregate.toml"));
    }
    command.current_dir(dir);
    command
}
