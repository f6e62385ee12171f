//! What takes a while, on a thread where no tunnel waits for it.

use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::oneshot;
use tracing::warn;

/// A thread for what takes a while: reading and compiling a million keys, asking all tunnels about new rules, letting go of
/// the old ones. Meanwhile the runtime's own threads carry bytes.
#[derive(Default)]
pub struct Loader(Option<SyncSender<Job>>);

type Job = Box<dyn FnOnce() + Send>;

/// A third of what others get of a busy core: a change is still in force soon when all cores are.
const NICE: i32 = 5;

impl Loader {
    /// The result of the work; `None` if it panicked.
    pub async fn run<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody waits any more when the process is about to end.
            let _ = done.send(work());
        });
        if let Err(job) = self.hand_over(job) {
            // No thread can be had: better slowly than not at all.
            job();
        }
        result.await.ok()
    }

    fn hand_over(&mut self, job: Job) -> Result<(), Job> {
        let job = match &self.0 {
            // It fails if the last job took the thread with it.
            Some(jobs) => match jobs.send(job) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.0,
            },
            None => job,
        };
        let (jobs, todo) = sync_channel::<Job>(1);
        let work = move || {
            // Where there are fewer cores than there is to do, bytes come first. On Linux this is about the thread alone.
            let _ = rustix::process::setpriority_process(None, NICE);
            todo.into_iter().for_each(|job| job());
        };
        if let Err(error) = std::thread::Builder::new().name("loader".into()).spawn(work) {
            warn!(%error, "cannot start a thread to read files");
            return Err(job);
        }
        let sent = jobs.send(job).map_err(|unsent| unsent.0);
        self.0 = Some(jobs);
        sent
    }
}
