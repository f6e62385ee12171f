//! An event as a line, written into the line's buffer piece by piece: a tunnel has two lines, and with the formatter that
//! comes with `tracing-subscriber` they were a quarter of what a handshake cost in user space.

use std::cell::RefCell;
use std::fmt::{self, Debug};
use std::time::SystemTime;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::fields::is_plain;

/// `2026-01-02T03:04:05.678901Z  INFO message field="text" number=1`
pub(super) struct Text;

/// `{"timestamp":"…","level":"INFO","message":"…","field":"text","number":1,"target":"…"}`
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write_time(&mut out)?;
        out.write_str(match *event.metadata().level() {
            Level::ERROR => " ERROR ",
            Level::WARN => "  WARN ",
            Level::INFO => "  INFO ",
            Level::DEBUG => " DEBUG ",
            Level::TRACE => " TRACE ",
        })?;
        let mut fields = TextFields { out, is_first: true, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        fields.out.write_char('\n')
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        out.write_str("{\"timestamp\":\"")?;
        write_time(&mut out)?;
        out.write_str("\",\"level\":\"")?;
        out.write_str(event.metadata().level().as_str())?;
        out.write_char('"')?;
        let mut fields = JsonFields { out, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        let mut out = fields.out;
        out.write_str(",\"target\":")?;
        write_json(&mut out, event.metadata().target())?;
        out.write_str("}\n")
    }
}

/// The present moment to the microsecond. Its second is written out once.
fn write_time(out: &mut Writer<'_>) -> fmt::Result {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_secs() {
            *second = now.as_secs();
            let stamp = i64::try_from(*second).ok().and_then(|second| Timestamp::from_second(second).ok());
            *text = stamp.unwrap_or_default().to_string();
            text.truncate("2026-01-02T03:04:05".len());
        }
        out.write_str(text)
    })?;
    let mut digits = *b".000000Z";
    let mut micros = now.subsec_micros();
    for digit in digits[1..7].iter_mut().rev() {
        *digit += u8::try_from(micros % 10).unwrap_or(0);
        micros /= 10;
    }
    out.write_str(std::str::from_utf8(&digits).unwrap_or_default())
}

fn write_number(out: &mut Writer<'_>, number: u64) -> fmt::Result {
    let mut digits = [b'0'; 20];
    let mut left = number;
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] += u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.write_str(std::str::from_utf8(&digits[first..]).unwrap_or_default())
}

struct TextFields<'w> {
    out: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl TextFields<'_> {
    fn write(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let is_message = field.name() == "message";
        let name = || {
            if !std::mem::take(&mut self.is_first) {
                self.out.write_char(' ')?;
            }
            if !is_message {
                self.out.write_str(field.name())?;
                self.out.write_char('=')?;
            }
            write(&mut self.out)
        };
        let result = name();
        self.result = self.result.and(result);
    }
}

impl Visit for TextFields<'_> {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.write(field, |out| {
            if is_plain(text) {
                out.write_char('"')?;
                out.write_str(text)?;
                out.write_char('"')
            } else {
                write!(out, "{text:?}")
            }
        });
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        self.write(field, |out| write_number(out, number));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, |out| write!(out, "{value:?}"));
    }
}

struct JsonFields<'w> {
    out: Writer<'w>,
    result: fmt::Result,
}

impl JsonFields<'_> {
    fn write(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        let name = || {
            self.out.write_str(",\"")?;
            self.out.write_str(field.name())?;
            self.out.write_str("\":")?;
            write(&mut self.out)
        };
        let result = name();
        self.result = self.result.and(result);
    }
}

impl Visit for JsonFields<'_> {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.write(field, |out| write_json(out, text));
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        self.write(field, |out| write_number(out, number));
    }

    fn record_i64(&mut self, field: &Field, number: i64) {
        self.write(field, |out| write!(out, "{number}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, |out| write!(out, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, number: f64) {
        // JSON has no word for what is no number.
        self.write(field, |out| if number.is_finite() { write!(out, "{number:?}") } else { out.write_str("null") });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, |out| write_json(out, &format!("{value:?}")));
    }
}

fn write_json(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    if is_plain(text) {
        out.write_char('"')?;
        out.write_str(text)?;
        return out.write_char('"');
    }
    out.write_str(&serde_json::to_string(text).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) -> String {
        let mut text = String::new();
        write(&mut Writer::new(&mut text)).unwrap();
        text
    }

    #[test]
    fn numbers_and_texts_are_what_they_are_elsewhere() {
        for number in [0, 7, 10, 1_234_567, u64::MAX] {
            assert_eq!(written(|out| write_number(out, number)), number.to_string());
        }
        for text in ["", "plain", "a \"b\"", "tab\t", "\\", "é", "\u{1b}[31m", "\u{7f}"] {
            assert_eq!(written(|out| write_json(out, text)), serde_json::to_string(text).unwrap());
        }
        let time = written(write_time);
        assert!(time.parse::<Timestamp>().is_ok() && time.len() == "2026-01-02T03:04:05.678901Z".len(), "{time}");
    }
}
