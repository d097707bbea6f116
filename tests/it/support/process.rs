//! One child process, ended by its pid.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{eventually_blocking, reaper};

/// Lines kept of a process's output; older ones are dropped.
const LINES_KEPT: usize = 2_000;

pub struct Process {
    child: Child,
    name: String,
    lines: Arc<Mutex<Vec<String>>>,
    ended: Option<ExitStatus>,
    show_on_panic: bool,
}

impl Process {
    /// Starts `command` with its output captured. `signal` ends it should the test binary die.
    pub fn spawn(mut command: Command, signal: &str) -> Process {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        reaper::watch(child.id(), signal);
        let lines = Arc::new(Mutex::new(Vec::new()));
        if let Some(output) = child.stdout.take() {
            collect(output, lines.clone());
        }
        if let Some(output) = child.stderr.take() {
            collect(output, lines.clone());
        }
        Process { child, name, lines, ended: None, show_on_panic: true }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stdout and stderr so far, by line.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
            if self.ended.is_some() {
                reaper::forget(self.child.id());
            }
        }
        self.ended
    }

    /// Sends a signal by its name: `TERM`, `KILL`, `STOP`, `CONT`, …
    pub fn signal(&mut self, signal: &str) {
        if self.ended().is_none() {
            signal_pid(self.child.id(), signal);
        }
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually_blocking(deadline, &what, || self.ended())
    }

    /// Once it has ended: waits until all that it wrote is read. Its last words may still be on their way.
    pub fn read_all(&self) {
        let read = || (Arc::strong_count(&self.lines) == 1).then_some(());
        eventually_blocking(Duration::from_secs(10), "its output ends", read);
    }

    pub fn kill9(&mut self) {
        self.signal("KILL");
        self.wait(Duration::from_secs(10));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // A stopped process is killed all the same.
            let _ = self.child.kill();
            let _ = self.child.wait();
            reaper::forget(self.child.id());
        }
        if self.show_on_panic && std::thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let tail = lines.len().saturating_sub(40);
            eprintln!("--- last output of {} ---\n{}\n---", self.name, lines[tail..].join("\n"));
        }
    }
}

/// By `sh`, whose `kill` is built in: no unsafe code, no package.
pub fn signal_pid(pid: u32, signal: &str) {
    let status = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok(), "sh runs");
}

fn collect(output: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut lines = lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if lines.len() >= LINES_KEPT {
                lines.drain(..LINES_KEPT / 2);
            }
            lines.push(line);
        }
    });
}
