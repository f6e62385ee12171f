//! A worker's own event queue: which of its sockets can be read or written, and who waits for that. It stands beside the
//! runtime's and is served by a task of it. A place in the runtime's takes two pieces of memory of 256 bytes a tunnel,
//! aligned to 128, and a system call when the socket is closed; a place in this one takes 40 bytes, and a socket that is
//! closed is gone from it by itself.
//!
//! Readiness is told once for each change (`EPOLLET`). Whoever finds nothing to read, or less than fits, has seen all that
//! there was, and says so with [`Ticket::spent`]; what comes after that is told anew.

use std::cell::{OnceCell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Events that are taken at a time.
const BATCH: usize = 512;
/// With as many as that there will be more in a moment: they are asked for without asking the runtime's queue first.
const BUSY: usize = 8;

/// What somebody wants to do with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Read = 0,
    Write = 1,
}

/// A socket's place in the queue of the thread that it was put there by, given back on drop.
#[derive(Debug)]
pub struct Ticket {
    queue: u32,
    at: u32,
}

struct Queue {
    /// Thread-local queues are told apart, so that a ticket of another thread is no ticket.
    number: u32,
    epoll: Arc<OwnedFd>,
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Place {
    sides: [Waiting; 2],
}

#[derive(Default)]
struct Waiting {
    /// Worth a try.
    is_ready: bool,
    /// The other end is gone, or has said that no more will come: it stays worth a try.
    is_final: bool,
    /// Somebody found nothing, and is to be woken.
    is_awaited: bool,
    who: Option<Waker>,
}

thread_local! {
    static QUEUE: OnceCell<RefCell<Queue>> = const { OnceCell::new() };
}

/// Hands out this thread's queue.
fn with<T>(then: impl FnOnce(&mut Queue) -> T) -> io::Result<T> {
    let then = |cell: &OnceCell<RefCell<Queue>>| {
        let queue = match cell.get() {
            Some(queue) => queue,
            None => {
                let queue = Queue::new()?;
                cell.get_or_init(|| RefCell::new(queue))
            }
        };
        Ok(then(&mut queue.borrow_mut()))
    };
    QUEUE.try_with(then).map_err(|_| ErrorKind::NotConnected)?
}

/// Wakes whose sockets have become ready. A worker has one of these from its beginning to its end.
///
/// # Errors
/// The system has no room for an event queue.
pub async fn serve() -> io::Result<Infallible> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may change their descriptor; this one cannot"
    )]
    let queue = AsyncFd::with_interest(with(|queue| queue.epoll.clone())?, Interest::READABLE)?;
    loop {
        let mut some = queue.readable().await?;
        while turn(queue.get_ref())? >= BUSY {
            after_the_others().await;
        }
        some.clear_ready();
    }
}

/// Returns when all that were ready have had their turn.
async fn after_the_others() {
    let mut is_first = true;
    let once = |cx: &mut Context<'_>| {
        if !std::mem::take(&mut is_first) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    };
    poll_fn(once).await;
}

/// Takes what has happened, and says how much that was.
fn turn(epoll: &OwnedFd) -> io::Result<usize> {
    let mut room = [const { MaybeUninit::uninit() }; BATCH];
    match epoll::wait(epoll, &mut room, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok((events, _)) => with(|queue| {
            events.iter().for_each(|event| queue.happened(event));
            events.len()
        }),
        Err(rustix::io::Errno::INTR) => Ok(BATCH),
        Err(error) => Err(error.into()),
    }
}

impl Queue {
    fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        Ok(Self { number, epoll, places: Vec::new(), free: Vec::new() })
    }

    fn one_more_place(&mut self) -> io::Result<u32> {
        let at = u32::try_from(self.places.len()).map_err(|_| ErrorKind::OutOfMemory)?;
        self.places.push(Place::default());
        Ok(at)
    }

    fn happened(&mut self, event: &Event) {
        let (flags, at) = (event.flags, event.data.u64());
        let Some(place) = usize::try_from(at).ok().and_then(|at| self.places.get_mut(at)) else { return };
        let gone = EventFlags::HUP | EventFlags::ERR;
        let last_of = [EventFlags::RDHUP | gone, gone];
        let news_of = [EventFlags::IN | last_of[0], EventFlags::OUT | last_of[1]];
        for (side, (news, last)) in place.sides.iter_mut().zip(news_of.into_iter().zip(last_of)) {
            side.is_final |= flags.intersects(last);
            if flags.intersects(news) {
                side.is_ready = true;
                if std::mem::take(&mut side.is_awaited)
                    && let Some(who) = &side.who
                {
                    who.wake_by_ref();
                }
            }
        }
    }
}

impl Ticket {
    /// Puts a socket into this thread's queue. `spent` is the side that has been tried in vain, or need not be tried.
    ///
    /// # Errors
    /// The system has no room for it.
    pub fn new(socket: &impl AsFd, spent: Side) -> io::Result<Self> {
        with(|queue| {
            let at = queue.free.pop().map_or_else(|| queue.one_more_place(), Ok)?;
            let wanted = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if let Err(error) = epoll::add(&*queue.epoll, socket, EventData::new_u64(at.into()), wanted) {
                queue.free.push(at);
                return Err(error.into());
            }
            queue.places[at as usize].sides[1 - spent as usize].is_ready = true;
            Ok(Self { queue: queue.number, at })
        })?
    }

    fn with<T>(&self, then: impl FnOnce(&mut Place) -> T) -> io::Result<T> {
        with(|queue| match queue.places.get_mut(self.at as usize) {
            Some(place) if queue.number == self.queue => Ok(then(place)),
            // A connection never changes its thread.
            _ => Err(ErrorKind::NotConnected.into()),
        })?
    }

    /// Ready when a try is worth it; until then the task is to be woken.
    pub fn poll(&self, side: Side, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.with(|place| {
            let side = &mut place.sides[side as usize];
            if side.is_ready || side.is_final {
                return Poll::Ready(Ok(()));
            }
            side.is_awaited = true;
            if !side.who.as_ref().is_some_and(|who| who.will_wake(cx.waker())) {
                side.who = Some(cx.waker().clone());
            }
            Poll::Pending
        });
        polled.unwrap_or_else(|error| Poll::Ready(Err(error)))
    }

    /// All that was there was taken. What is final stays so.
    pub fn spent(&self, side: Side) {
        let _ = self.with(|place| place.sides[side as usize].is_ready = false);
    }

    /// A try found nothing at all, whatever was said before.
    pub fn in_vain(&self, side: Side) {
        let _ = self.with(|place| {
            let side = &mut place.sides[side as usize];
            (side.is_ready, side.is_final) = (false, false);
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // What it holds is let go when nobody is at the queue any more.
        let place = with(|queue| {
            let is_own = queue.number == self.queue;
            is_own.then(|| {
                queue.free.push(self.at);
                std::mem::take(&mut queue.places[self.at as usize])
            })
        });
        drop(place);
    }
}
