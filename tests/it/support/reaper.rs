//! Ends servers and removes folders when the test binary ends, in whatever way: a shell waits for the other end of its
//! standard input to close, which the kernel does for us.

use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// Keeps the list of what is alive; at the end of input it sends each pid its signal, waits, and removes the folders.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
work=$(mktemp -d) || exit 1
# A zombie whose new parent is slow to reap it has ended.
alive() { kill -0 "$1" 2>/dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }
while read -r verb key value; do
  case $verb in
    pid) printf '%s' "$value" >"$work/pid.$key" ;;
    gone) rm -f "$work/pid.$key" ;;
    dir) printf '%s\n' "$key" >>"$work/dirs" ;;
  esac
done
for file in "$work"/pid.*; do
  [ -e "$file" ] || continue
  pid=${file##*/pid.}
  kill -s CONT "$pid" 2>/dev/null
  kill -s "$(cat "$file")" "$pid" 2>/dev/null
  tries=0
  while alive "$pid" && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
  alive "$pid" && kill -s KILL "$pid" 2>/dev/null
done
if [ -e "$work/dirs" ]; then
  while read -r dir; do rm -rf "$dir"; done <"$work/dirs"
fi
rm -rf "$work"
"#;

fn tell(line: &str) {
    static INPUT: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    #[expect(clippy::zombie_processes, reason = "it ends after us, by design")]
    let input = INPUT.get_or_init(|| {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.process_group(0).spawn().expect("sh starts");
        Mutex::new(child.stdin.take().expect("its input is ours"))
    });
    let mut input = input.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    input.write_all(line.as_bytes()).expect("the reaper listens");
}

/// Send `pid` this signal (`KILL`, `QUIT`) when we end.
pub fn watch(pid: u32, signal: &str) {
    tell(&format!("pid {pid} {signal}\n"));
}

/// `pid` has ended and been waited for; the number may soon be somebody else's.
pub fn forget(pid: u32) {
    tell(&format!("gone {pid}\n"));
}

/// Remove this folder when we end.
pub fn remove(dir: &Path) {
    tell(&format!("dir {}\n", dir.display()));
}
