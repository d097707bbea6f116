//! One thread writes, a few read. SQLite blocks, so its connections live on threads of their own, and nothing on an
//! async runtime waits for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::super::{StoreError, StoreResult};
use super::failed;

/// Readers: enough that one long list does not keep a login waiting.
const READERS: usize = 2;
/// Jobs that wait for a thread; beyond it their callers wait.
const QUEUE: usize = 256;
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 64;
/// How long another process (a backup, `sqlite3`) may hold the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

enum Job {
    Run(Work),
    Stop,
}

pub(super) struct Threads {
    /// Whether commits of the writing connection go without a sync at the moment. Only its thread changes this.
    relaxed: Arc<AtomicBool>,
    writer: mpsc::Sender<Job>,
    readers: mpsc::Sender<Job>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    pub(super) fn start(path: &Path) -> StoreResult<Threads> {
        let writing = open_writer(path)?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        let mut handles = vec![spawn("store-writer", writing, Arc::new(Mutex::new(jobs)))?];
        let (readers, jobs) = mpsc::channel(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..READERS {
            handles.push(spawn("store-reader", open_reader(path)?, jobs.clone())?);
        }
        Ok(Threads { relaxed: Arc::default(), writer, readers, handles: Mutex::new(handles) })
    }

    /// Runs `work` in a transaction that is committed when it answers `Ok`. Once submitted it runs to its end, whether
    /// or not anybody still waits for it.
    pub(super) async fn write<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> StoreResult<T> + Send + 'static,
    {
        self.write_with(false, work).await
    }

    /// As [`Threads::write`], for what a power cut may take back as long as no later commit was synced.
    pub(super) async fn write_relaxed<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> StoreResult<T> + Send + 'static,
    {
        self.write_with(true, work).await
    }

    async fn write_with<T, F>(&self, wanted: bool, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> StoreResult<T> + Send + 'static,
    {
        let relaxed = self.relaxed.clone();
        call(&self.writer, move |connection| {
            set_relaxed(connection, &relaxed, wanted)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            let answer = work(&transaction)?;
            transaction.commit().map_err(failed)?;
            Ok(answer)
        })
        .await
    }

    /// Runs `work` on one snapshot.
    pub(super) async fn read<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> StoreResult<T> + Send + 'static,
    {
        call(&self.readers, move |connection| work(&connection.transaction().map_err(failed)?)).await
    }

    /// Runs `work` on the writing connection, outside a transaction.
    pub(super) async fn own<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> StoreResult<T> + Send + 'static,
    {
        self.own_with(false, work).await
    }

    /// As [`Threads::own`], for commits that need not survive a power cut by themselves: what they write can be made
    /// again from what an earlier commit made durable. The log keeps the order, so a later commit that is synced makes
    /// them durable too.
    pub(super) async fn own_relaxed<T, F>(&self, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> StoreResult<T> + Send + 'static,
    {
        self.own_with(true, work).await
    }

    async fn own_with<T, F>(&self, wanted: bool, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> StoreResult<T> + Send + 'static,
    {
        let relaxed = self.relaxed.clone();
        call(&self.writer, move |connection| {
            set_relaxed(connection, &relaxed, wanted)?;
            work(connection)
        })
        .await
    }

    /// Finishes what was submitted, then ends the threads and waits for them.
    pub(super) async fn close(&self) {
        let handles = std::mem::take(&mut *self.handles.lock());
        if handles.is_empty() {
            return;
        }
        // The channels are bounded and their threads alive, so these wait for room, not forever.
        let _ = self.writer.send(Job::Stop).await;
        for _ in 0..READERS {
            let _ = self.readers.send(Job::Stop).await;
        }
        let joined =
            tokio::task::spawn_blocking(move || handles.into_iter().filter_map(|handle| handle.join().err()).count());
        if joined.await.unwrap_or(1) > 0 {
            tracing::error!("a thread of the store ended abnormally");
        }
    }
}

fn set_relaxed(connection: &Connection, relaxed: &AtomicBool, wanted: bool) -> StoreResult<()> {
    if relaxed.load(Ordering::Relaxed) != wanted {
        let level = if wanted { "PRAGMA synchronous = NORMAL" } else { "PRAGMA synchronous = FULL" };
        connection.execute_batch(level).map_err(failed)?;
        relaxed.store(wanted, Ordering::Relaxed);
    }
    Ok(())
}

async fn call<T, F>(to: &mpsc::Sender<Job>, work: F) -> StoreResult<T>
where
    T: Send + 'static,
    F: FnOnce(&mut Connection) -> StoreResult<T> + Send + 'static,
{
    let closed = || StoreError::Unavailable("it is closed".to_owned());
    let (sender, receiver) = oneshot::channel();
    let run: Work = Box::new(move |connection| {
        // Nobody listens where the caller gave up.
        let _ = sender.send(work(connection));
    });
    to.send(Job::Run(run)).await.map_err(|_| closed())?;
    receiver.await.map_err(|_| closed())?
}

fn spawn(name: &str, mut connection: Connection, jobs: Arc<Mutex<mpsc::Receiver<Job>>>) -> StoreResult<JoinHandle<()>> {
    let run = move || {
        loop {
            // One thread waits for the next job, the others for the lock; a job runs outside it.
            let job = jobs.lock().blocking_recv();
            match job {
                Some(Job::Run(work)) => {
                    // A panic ends its transaction and its caller's wait, not the store.
                    if catch_unwind(AssertUnwindSafe(|| work(&mut connection))).is_err() {
                        tracing::error!("a store operation panicked");
                    }
                }
                Some(Job::Stop) | None => break,
            }
        }
        if let Err((_, error)) = connection.close() {
            tracing::warn!(%error, "closing the store");
        }
    };
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// `synchronous=FULL`: an acknowledged settle survives a power cut. Killing the process loses nothing either way.
fn open_writer(path: &Path) -> StoreResult<Connection> {
    private(path)?;
    let connection = Connection::open(path).map_err(failed)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(StoreError::Unavailable(format!("SQLite cannot use a write-ahead log here (journal mode {mode})")));
    }
    let settings = "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 2000;
        PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384; PRAGMA trusted_schema = OFF;";
    connection.execute_batch(settings).map_err(failed)?;
    prepared(connection)
}

fn open_reader(path: &Path) -> StoreResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -4096;").map_err(failed)?;
    prepared(connection)
}

fn prepared(connection: Connection) -> StoreResult<Connection> {
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Only its owner may read the file; SQLite gives its log the same mode.
fn private(path: &Path) -> StoreResult<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let opened = options.open(path);
    opened.map(drop).map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))
}
