//! Dates as people write them into a file, and as HTTP has them.

use std::cell::RefCell;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// Whole seconds since 1970, UTC: fine enough for dates that people write into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub i64);

impl UnixTime {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }

    /// RFC 3339, UTC.
    pub fn text(self) -> String {
        Timestamp::from_second(self.0).map_or_else(|_| self.0.to_string(), |date| date.to_string())
    }
}

/// Hands out the present second as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7), written once a second.
pub fn with_http_date<T>(take: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static LAST: RefCell<(UnixTime, String)> = const { RefCell::new((UnixTime(i64::MIN), String::new())) };
    }
    LAST.with_borrow_mut(|(second, text)| {
        let now = UnixTime::now();
        if *second != now {
            *second = now;
            let date = Timestamp::from_second(now.0).unwrap_or(Timestamp::UNIX_EPOCH);
            *text = DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap_or_default();
        }
        take(text)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_date_is_as_http_wants_it() {
        super::with_http_date(|date| {
            assert_eq!(date.len(), "Sun, 06 Nov 1994 08:49:37 GMT".len());
            assert!(date.ends_with(" GMT"), "{date}");
        });
    }
}
