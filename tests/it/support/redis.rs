//! A Redis server of one's own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::{Pair, eventually_blocking, free_port, reaper};

pub struct Redis {
    process: Process,
    port: u16,
    settings: Vec<String>,
    /// How redis-cli gets in.
    access: Vec<String>,
    /// Last, so that the server is gone before its folder.
    dir: tempfile::TempDir,
}

impl Redis {
    /// An empty server without persistence.
    pub fn start() -> Redis {
        Redis::with(&["--appendonly", "no"])
    }

    /// A server that writes an append-only file, `fsync` on every write: [`Redis::restart`] finds its data again.
    pub fn durable() -> Redis {
        Redis::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// With settings as on redis-server's command line, such as `["--maxmemory", "10mb"]`.
    pub fn with(settings: &[&str]) -> Redis {
        Redis::launch(free_port(), settings, &[])
    }

    /// A server that speaks nothing but TLS, with this certificate; clients have to show one of `authority`'s, if they
    /// `must`. Whoever is not named in the settings needs the password.
    pub fn secure(certificate: &Pair, authority: &Path, must: bool, password: &str, settings: &[&str]) -> Redis {
        let port = free_port();
        let [ca, cert, key] =
            [authority, &certificate.certificate, &certificate.key].map(|path| path.to_str().unwrap());
        let number = port.to_string();
        let clients = if must { "yes" } else { "no" };
        let tls = ["--port", "0", "--tls-port", &number, "--tls-ca-cert-file", ca, "--tls-cert-file", cert];
        let more = ["--tls-key-file", key, "--tls-auth-clients", clients, "--requirepass", password];
        let access = ["--tls", "--cacert", ca, "--cert", cert, "--key", key, "-a", password, "--no-auth-warning"];
        Redis::launch(port, &[&tls[..], &more, settings].concat(), &access)
    }

    fn launch(port: u16, settings: &[&str], access: &[&str]) -> Redis {
        let dir = tempfile::Builder::new().prefix("faregate-redis").tempdir().unwrap();
        reaper::remove(dir.path());
        let owned = |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
        let (settings, access) = (owned(settings), owned(access));
        let process = spawn(dir.path(), port, &settings);
        let mut redis = Redis { process, port, settings, access, dir };
        redis.wait_until_ready();
        redis
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// For `ledger.url`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs a command through redis-cli and gives back its raw output, trimmed.
    pub fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--raw"])
            .args(&self.access)
            .args(arguments)
            .output()
            .expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub fn pause(&mut self) {
        self.process.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.signal("CONT");
    }

    /// Stops a replica of `primary`, so that it hears nothing of what is written from here on, even once it is resumed.
    pub fn cut_off_from(&mut self, primary: &Redis) {
        self.pause();
        primary.command(&["CLIENT", "KILL", "TYPE", "replica"]);
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again after [`Redis::kill9`] (or kills it first), on its port, with what its files hold.
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = spawn(self.dir.path(), self.port, &self.settings);
        self.wait_until_ready();
    }

    /// What its files hold now, by their path in its folder.
    pub fn files(&self) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push((path.clone(), std::fs::read(&path).unwrap()));
                }
            }
        }
        files
    }

    /// Puts files back that [`Redis::files`] gave, while it is down.
    pub fn put_back(&self, files: &[(std::path::PathBuf, Vec<u8>)]) {
        for (path, bytes) in files {
            std::fs::write(path, bytes).unwrap();
        }
    }

    fn wait_until_ready(&mut self) {
        eventually_blocking(Duration::from_secs(20), "redis-server answers", || {
            assert!(self.process.ended().is_none(), "redis-server ended: {:?}", self.process.lines());
            TcpStream::connect(self.addr()).ok()?;
            (self.command(&["ping"]) == "PONG").then_some(())
        });
    }
}

/// The server to test against: `redis-server`, or the program that FAREGATE_TEST_REDIS_SERVER names.
pub fn server() -> String {
    std::env::var("FAREGATE_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

fn spawn(dir: &std::path::Path, port: u16, settings: &[String]) -> Process {
    let mut command = Command::new(server());
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--daemonize", "no"]);
    command.arg("--dir").arg(dir).args(settings).current_dir(dir);
    Process::spawn(command, "KILL")
}
