//! A Postgres server of one's own: one for the whole test binary, a fresh database for each test.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::process::{self, Process};
use super::{Pair, eventually_blocking, free_port, reaper};

pub struct Postgres {
    server: Arc<Mutex<Server>>,
    port: u16,
    database: String,
}

struct Server {
    process: Process,
    port: u16,
    settings: Vec<String>,
    bin: PathBuf,
    dir: tempfile::TempDir,
}

/// Beside what every server has.
const DURABLE: [&str; 0] = [];
const FAST: [&str; 3] = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"];

/// How a server is reached with TLS.
pub struct Secure<'a> {
    pub certificate: &'a Pair,
    /// The authority of the clients' certificates.
    pub clients: &'a Path,
    /// `pg_hba.conf`, behind the line that lets the tests themselves in.
    pub access: &'a str,
}

impl Postgres {
    /// A fresh database on the shared server, which runs without fsync.
    pub fn start() -> Postgres {
        static SHARED: Mutex<Option<Arc<Mutex<Server>>>> = Mutex::new(None);
        let server = {
            let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            shared.get_or_insert_with(|| Arc::new(Mutex::new(Server::start(&FAST, None)))).clone()
        };
        Postgres::on(server)
    }

    /// A server of the test's own, for those that kill or stop it; with fsync.
    pub fn own() -> Postgres {
        Postgres::on(Arc::new(Mutex::new(Server::start(&DURABLE, None))))
    }

    /// A server of the test's own that speaks TLS.
    pub fn secure(secure: &Secure<'_>) -> Postgres {
        Postgres::on(Arc::new(Mutex::new(Server::start(&FAST, Some(secure)))))
    }

    fn on(server: Arc<Mutex<Server>>) -> Postgres {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let database = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let port = server.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).port;
        let postgres = Postgres { server, port, database };
        query(port, "postgres", &format!("CREATE DATABASE {}", postgres.database));
        postgres
    }

    /// For `store.url`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{}", self.port, self.database)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    /// Runs statements in this database; the rows of the last one, every value as text, columns joined by `|`.
    pub fn query(&self, sql: &str) -> Vec<String> {
        query(self.port, &self.database, sql)
    }

    /// SIGSTOP to the server and all that it started: connections stay open, nothing answers. Only on one's own server.
    pub fn pause(&self) {
        drop(self.signal_all("STOP"));
    }

    /// SIGCONT.
    pub fn resume(&self) {
        drop(self.signal_all("CONT"));
    }

    /// kill -9 of the server and all that it started. Only on one's own server.
    pub fn kill9(&self) {
        let started = self.signal_all("STOP");
        let mut server = self.server.lock().unwrap();
        for child in &started {
            process::signal_pid(*child, "KILL");
        }
        server.process.kill9();
        // A new server does not start while one of them has its shared memory.
        eventually_blocking(Duration::from_secs(20), "postgres is gone", || {
            started.iter().all(|child| state(*child).is_none_or(|(state, _)| state == "Z")).then_some(())
        });
    }

    /// Ends the server at once, as a crash would. Only on one's own server.
    pub fn kill(&self) {
        let mut server = self.server.lock().unwrap();
        // QUIT is Postgres's own "stop without a checkpoint"; it takes the backends along.
        server.process.signal("QUIT");
        server.process.wait(Duration::from_secs(20));
    }

    /// Starts it again after [`Postgres::kill`].
    pub fn restart(&self) {
        let mut server = self.server.lock().unwrap();
        server.process = serve(&server.bin, server.dir.path(), server.port, &server.settings);
        server.wait_until_ready();
    }

    /// The server first: stopped, it starts no more. Its children have process groups of their own.
    fn signal_all(&self, signal: &str) -> Vec<u32> {
        let mut server = self.server.lock().unwrap();
        let pid = server.process.pid();
        if signal == "STOP" {
            server.process.signal(signal);
        }
        let started = children(pid);
        for child in &started {
            process::signal_pid(*child, signal);
        }
        if signal != "STOP" {
            server.process.signal(signal);
        }
        started
    }
}

/// A process's state and its parent.
fn state(pid: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.to_owned(), rest.next()?.parse().ok()?))
}

/// Processes that `pid` started.
fn children(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|number| state(*number).is_some_and(|(_, parent)| parent == pid)).collect()
}

impl Server {
    fn start(settings: &[&str], secure: Option<&Secure<'_>>) -> Server {
        let bin = find_binaries();
        let dir = tempfile::Builder::new().prefix("faregate-postgres").tempdir().unwrap();
        reaper::remove(dir.path());
        let data = dir.path().join("data");
        if as_root() {
            let owned = Command::new("chown").arg("postgres:postgres").arg(dir.path()).status().unwrap();
            assert!(owned.success(), "the user postgres exists");
        }
        let mut initdb = command(&bin.join("initdb"));
        initdb.args(["--no-sync", "--no-instructions", "--auth=trust", "--username=postgres", "--encoding=UTF8"]);
        initdb.args(["--locale=C", "--pgdata"]).arg(&data).current_dir(dir.path());
        let output = initdb.output().expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        if let Some(secure) = secure {
            settings.extend(secure.settings(dir.path()));
        }
        let port = free_port();
        let process = serve(&bin, dir.path(), port, &settings);
        let mut server = Server { process, port, settings, bin, dir };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        eventually_blocking(Duration::from_secs(30), "postgres answers", || {
            assert!(self.process.ended().is_none(), "postgres ended: {:?}", self.process.lines());
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
            try_query(self.port, "postgres", "SELECT 1").ok()
        });
    }
}

impl Secure<'_> {
    /// Writes the server's files.
    fn settings(&self, dir: &Path) -> Vec<String> {
        let files = [
            ("ssl_cert_file", &*self.certificate.certificate),
            ("ssl_key_file", &*self.certificate.key),
            ("ssl_ca_file", self.clients),
        ];
        let mut settings = vec!["ssl=on".to_owned()];
        for (name, from) in files {
            let to = dir.join(name);
            std::fs::copy(from, &to).unwrap();
            std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            if as_root() {
                assert!(Command::new("chown").arg("postgres:postgres").arg(&to).status().unwrap().success());
            }
            settings.push(format!("{name}={}", to.display()));
        }
        let access = format!("host all postgres 127.0.0.1/32 trust\n{}", self.access);
        std::fs::write(dir.join("data/pg_hba.conf"), access).unwrap();
        settings
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        children(self.process.pid()).into_iter().for_each(|child| process::signal_pid(child, "CONT"));
        self.process.signal("CONT");
        self.process.signal("QUIT");
        self.process.wait(Duration::from_secs(20));
    }
}

fn serve(bin: &Path, dir: &Path, port: u16, settings: &[String]) -> Process {
    let mut postgres = command(&bin.join("postgres"));
    postgres.arg("-D").arg(dir.join("data")).arg("-k").arg(dir).arg("-p").arg(port.to_string()).current_dir(dir);
    let always = ["listen_addresses=127.0.0.1", "max_connections=200", "shared_buffers=64MB"];
    for setting in always.into_iter().chain(settings.iter().map(String::as_str)) {
        postgres.args(["-c", setting]);
    }
    Process::spawn(postgres, "QUIT")
}

/// initdb and postgres refuse to run as root.
fn command(program: &Path) -> Command {
    if !as_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

fn as_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Debian keeps them out of the PATH, a folder for each version.
fn find_binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| version(path));
    let debian = newest.map(|path| path.join("bin")).filter(|bin| bin.join("initdb").exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    debian
        .or_else(|| std::env::split_paths(&path).find(|bin| bin.join("initdb").exists()))
        .expect("postgresql is installed (Debian: apt-get install postgresql)")
}

fn query(port: u16, database: &str, sql: &str) -> Vec<String> {
    try_query(port, database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// On a thread of its own, so that it can be called from async tests too.
fn try_query(port: u16, database: &str, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let settings = format!("host=127.0.0.1 port={port} user=postgres dbname={database} connect_timeout=5");
    let sql = sql.to_owned();
    let work = async move {
        let (client, connection) = tokio_postgres::connect(&settings, tokio_postgres::NoTls).await?;
        let asking = async {
            let answer = client.simple_query(&sql).await;
            drop(client);
            answer
        };
        let (answer, _) = tokio::join!(asking, connection);
        let mut rows = Vec::new();
        for message in answer? {
            match message {
                tokio_postgres::SimpleQueryMessage::RowDescription(_) => rows.clear(),
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    let columns = (0..row.len()).map(|index| row.get(index).unwrap_or(""));
                    rows.push(columns.collect::<Vec<_>>().join("|"));
                }
                _ => {}
            }
        }
        Ok(rows)
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime().block_on(work)).join().unwrap()
}
