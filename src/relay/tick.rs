//! What a guarded tunnel does by the clock: reads on where a rate has refilled, and asks a silent client whether it is there.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::guard::{Guard, Question};
use super::half::Half;

/// When a direction that waits for its rate may go on.
pub(super) fn refilled_at(up: &Half, down: &Half) -> Option<Instant> {
    let until = |half: &Half| half.guard.as_ref().and_then(|guard| guard.until);
    earlier(until(up), until(down))
}

/// The earlier of two moments, of those that there are.
pub(super) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, None) | (None, one) => one,
    }
}

/// Does what is due. True: the client has given no sign of life.
pub(super) fn tick<D: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    (up, down): (&mut Half, &mut Half),
    client: &mut D,
    now: Instant,
) -> bool {
    for guard in [&mut up.guard, &mut down.guard].into_iter().flatten() {
        if guard.until.is_some_and(|until| until <= now) {
            guard.until = None;
            // To read on, this task has to have another turn.
            cx.waker().wake_by_ref();
        }
    }
    if !is_pinging(up, down) {
        return false;
    }
    let is_listening = up.is_listening();
    let (Some(watch_up), Some(watch_down)) = (&mut up.guard, &mut down.guard) else { return false };
    let Some(pulse) = &mut watch_up.pulse else { return false };
    if !is_listening {
        // What it says is not read, because the upstream or a limit holds it up: nobody knows how it is.
        pulse.heard = now;
    }
    let taken = down.bytes.wrapping_sub(down.kept.len());
    if pulse.taken != taken || pulse.heard > pulse.since {
        (pulse.taken, pulse.since) = (taken, now);
    }
    match watch_down.question {
        Question::Asked(at) if pulse.heard <= at => return at + pulse.ask.timeout <= now,
        // No place for a Ping: the client takes nothing of the frame that is under way.
        Question::Waiting(_) => return !down.kept.is_empty() && pulse.since + pulse.ask.timeout <= now,
        Question::Asked(_) => watch_down.question = Question::None,
        Question::None => {}
    }
    if watch_down.question == Question::None && pulse.heard + pulse.ask.interval <= now {
        watch_down.question = Question::Waiting(pulse.payload());
        pulse.owed = pulse.owed.saturating_add(1);
        down.ask();
        if down.kept.poll_write(cx, client) == Poll::Ready(Err(())) {
            down.give_up();
        }
        let _ = Pin::new(client).poll_flush(cx);
    }
    false
}

/// When [`tick`] has something to do next.
pub(super) fn next_tick(up: &Half, down: &Half, now: Instant) -> Option<Instant> {
    let refilled = refilled_at(up, down);
    let beat = match (&up.guard, &down.guard) {
        (Some(watch_up), Some(watch_down)) if is_pinging(up, down) => next_beat(watch_up, watch_down.question, now),
        _ => None,
    };
    earlier(refilled, beat)
}

fn next_beat(up: &Guard, question: Question, now: Instant) -> Option<Instant> {
    let pulse = up.pulse.as_ref()?;
    Some(match question {
        Question::Asked(at) if pulse.heard <= at => at + pulse.ask.timeout,
        // It goes when the frame before it has; then the time to answer begins.
        Question::Waiting(_) => now + pulse.ask.timeout,
        Question::Asked(_) | Question::None => pulse.heard + pulse.ask.interval,
    })
}

/// Whether the client is asked for signs of life: not when a Close has passed or a side has ended, and not where frames
/// cannot be followed.
fn is_pinging(up: &Half, down: &Half) -> bool {
    [up, down].into_iter().all(|half| {
        let can_follow = !half.follower.is_lost() && !half.follower.saw_close();
        can_follow && !half.ended && !half.writer_gone
    })
}
