//! The bounds of a tunnel, and the same in few bytes: there are as many of these as there are tunnels.

use std::time::Duration;

use tokio::time::Instant;

/// When a tunnel ends by itself. `None`: not for this reason.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub idle: Option<Duration>,
    /// When its lifetime is over.
    pub until: Option<Instant>,
    pub half_close: Duration,
    /// How long one side may take nothing of what waits for it.
    pub write_stall: Option<Duration>,
}

/// [`Bounds`], as a relay keeps them.
pub(super) struct Terms {
    pub(super) until: Option<Instant>,
    pub(super) idle: Span,
    pub(super) half_close: Span,
    pub(super) write_stall: Span,
}

impl Terms {
    pub(super) fn of(bounds: &Bounds) -> Self {
        Self {
            until: bounds.until,
            idle: Span::of(bounds.idle),
            half_close: Span::of(Some(bounds.half_close)),
            write_stall: Span::of(bounds.write_stall),
        }
    }
}

/// Milliseconds, or no limit. What is longer than 49 days is no limit either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(u32);

impl Span {
    fn of(length: Option<Duration>) -> Self {
        Self(length.and_then(|length| u32::try_from(length.as_millis()).ok()).unwrap_or(u32::MAX))
    }

    pub(super) fn length(self) -> Option<Duration> {
        (self.0 != u32::MAX).then(|| Duration::from_millis(self.0.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_what_it_was_made_of() {
        for millis in [1, 250, 3_600_000, 49 * 24 * 3_600_000] {
            let length = Some(Duration::from_millis(millis));
            assert_eq!(Span::of(length).length(), length);
        }
        assert_eq!(Span::of(None).length(), None);
        assert_eq!(Span::of(Some(Duration::from_secs(50 * 24 * 3600))).length(), None);
    }
}
