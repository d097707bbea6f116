//! A Redis that Sentinels watch: a primary, a replica, three Sentinels.

use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::{Redis, eventually_blocking, free_port, reaper};

const SENTINELS: usize = 3;
pub const MASTER: &str = "main";
/// How soon after a change all agree again.
const SETTLED: Duration = Duration::from_secs(60);

pub struct Sentinels {
    pub servers: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    _process: Process,
    port: u16,
    /// Last, so that the process is gone before its folder.
    _dir: tempfile::TempDir,
}

impl Sentinels {
    /// Waits until everybody knows everybody.
    pub fn start() -> Sentinels {
        let server = || Redis::with(&["--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        let servers = [server(), server()];
        servers[1].command(&["REPLICAOF", "127.0.0.1", &servers[0].port().to_string()]);
        let sentinels = (0..SENTINELS).map(|_| sentinel(servers[0].port())).collect();
        let watched = Sentinels { servers, sentinels };
        watched.wait_until_whole();
        watched
    }

    /// For `ledger.url`; the first of the Sentinels is not there.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://127.0.0.1:{},{}/{MASTER}", free_port(), hosts.join(","))
    }

    /// The server that most Sentinels call the primary.
    pub fn primary(&self) -> usize {
        let named = |index: usize| {
            let port = self.servers[index].port().to_string();
            self.sentinels.iter().filter(|sentinel| sentinel.master().1 == port).count()
        };
        usize::from(named(1) > named(0))
    }

    /// All Sentinels name the same primary, which has a replica that follows it.
    pub fn wait_until_whole(&self) {
        eventually_blocking(SETTLED, "the Sentinels agree", || {
            let primary = self.primary();
            let port = self.servers[primary].port().to_string();
            let agree = self.sentinels.iter().all(|sentinel| {
                let about = sentinel.command(&["SENTINEL", "MASTER", MASTER]);
                let about: Vec<&str> = about.lines().collect();
                let field = |name| about.iter().position(|it| *it == name).and_then(|at| about.get(at + 1)).copied();
                sentinel.master().1 == port
                    && field("flags") == Some("master")
                    && field("num-other-sentinels") == Some("2")
                    && field("num-slaves") == Some("1")
            });
            let follows = self.servers[1 - primary].command(&["INFO", "replication"]);
            let leads = self.servers[primary].command(&["INFO", "replication"]);
            (agree && follows.contains("master_link_status:up") && leads.contains("connected_slaves:1")).then_some(())
        });
    }

    /// A planned fail-over: the primary becomes a replica, and lives.
    pub fn fail_over(&self) {
        eventually_blocking(SETTLED, "a Sentinel begins the fail-over", || {
            (self.sentinels[0].command(&["SENTINEL", "FAILOVER", MASTER]) == "OK").then_some(())
        });
    }
}

impl Sentinel {
    fn master(&self) -> (String, String) {
        let answer = self.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
        let mut lines = answer.lines().map(ToOwned::to_owned);
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
    }

    fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--raw"])
            .args(arguments)
            .output()
            .expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn sentinel(primary: u16) -> Sentinel {
    let dir = tempfile::Builder::new().prefix("faregate-sentinel").tempdir().unwrap();
    reaper::remove(dir.path());
    let (port, file) = (free_port(), dir.path().join("sentinel.conf"));
    let settings = format!(
        "bind 127.0.0.1\nport {port}\nsentinel monitor {MASTER} 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds {MASTER} 2000\nsentinel failover-timeout {MASTER} 6000\n"
    );
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&file).arg("--sentinel").current_dir(dir.path());
    Sentinel { _process: Process::spawn(command, "KILL"), port, _dir: dir }
}
