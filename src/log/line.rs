//! An event as a line, written into the line's buffer piece by piece: a tunnel has two lines, and with the formatter that
//! comes with `tracing-subscriber` they were a quarter of what a handshake cost in user space.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Debug, Write as _};
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
        let mut line = LINE.take();
        push_time(&mut line);
        line.push_str(match *event.metadata().level() {
            Level::ERROR => " ERROR ",
            Level::WARN => "  WARN ",
            Level::INFO => "  INFO ",
            Level::DEBUG => " DEBUG ",
            Level::TRACE => " TRACE ",
        });
        let mut fields = TextFields { line, is_first: true };
        event.record(&mut fields);
        fields.line.push('\n');
        hand_over(fields.line, &mut out)
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = LINE.take();
        line.push_str("{\"timestamp\":\"");
        push_time(&mut line);
        line.push_str("\",\"level\":\"");
        line.push_str(event.metadata().level().as_str());
        line.push('"');
        let mut fields = JsonFields { line };
        event.record(&mut fields);
        let mut line = fields.line;
        line.push_str(",\"target\":");
        push_json(&mut line, event.metadata().target());
        line.push_str("}\n");
        hand_over(line, &mut out)
    }
}

thread_local! {
    /// A line is put together here, because a piece that goes through the writer costs as much as three that do not.
    static LINE: Cell<String> = const { Cell::new(String::new()) };
}

fn hand_over(mut line: String, out: &mut Writer<'_>) -> fmt::Result {
    let written = out.write_str(&line);
    line.clear();
    LINE.set(line);
    written
}

/// The present moment to the microsecond. Its second is written out once.
fn push_time(line: &mut String) {
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
        line.push_str(text);
    });
    let mut digits = *b".000000Z";
    let mut micros = now.subsec_micros();
    for digit in digits[1..7].iter_mut().rev() {
        *digit += u8::try_from(micros % 10).unwrap_or(0);
        micros /= 10;
    }
    line.push_str(std::str::from_utf8(&digits).unwrap_or_default());
}

fn push_number(line: &mut String, number: u64) {
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
    line.push_str(std::str::from_utf8(&digits[first..]).unwrap_or_default());
}

fn push_debug(line: &mut String, value: &dyn Debug) {
    // Into memory: there is nothing in it that could fail.
    let _ = write!(line, "{value:?}");
}

struct TextFields {
    line: String,
    is_first: bool,
}

impl TextFields {
    /// Where the value of this field goes.
    fn of(&mut self, field: &Field) -> &mut String {
        if !std::mem::take(&mut self.is_first) {
            self.line.push(' ');
        }
        if field.name() != "message" {
            self.line.push_str(field.name());
            self.line.push('=');
        }
        &mut self.line
    }
}

impl Visit for TextFields {
    fn record_str(&mut self, field: &Field, text: &str) {
        let line = self.of(field);
        if is_plain(text) {
            line.push('"');
            line.push_str(text);
            line.push('"');
        } else {
            push_debug(line, &text);
        }
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        push_number(self.of(field), number);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        push_debug(self.of(field), value);
    }
}

struct JsonFields {
    line: String,
}

impl JsonFields {
    /// Where the value of this field goes.
    fn of(&mut self, field: &Field) -> &mut String {
        self.line.push_str(",\"");
        self.line.push_str(field.name());
        self.line.push_str("\":");
        &mut self.line
    }
}

impl Visit for JsonFields {
    fn record_str(&mut self, field: &Field, text: &str) {
        push_json(self.of(field), text);
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        push_number(self.of(field), number);
    }

    fn record_i64(&mut self, field: &Field, number: i64) {
        push_debug(self.of(field), &number);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        push_debug(self.of(field), &value);
    }

    fn record_f64(&mut self, field: &Field, number: f64) {
        let line = self.of(field);
        // JSON has no word for what is no number.
        if number.is_finite() {
            push_debug(line, &number);
        } else {
            line.push_str("null");
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        push_json(self.of(field), &text);
    }
}

fn push_json(line: &mut String, text: &str) {
    if is_plain(text) {
        line.push('"');
        line.push_str(text);
        line.push('"');
    } else {
        line.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(push: impl FnOnce(&mut String)) -> String {
        let mut line = String::new();
        push(&mut line);
        line
    }

    #[test]
    fn numbers_and_texts_are_what_they_are_elsewhere() {
        for number in [0, 7, 10, 1_234_567, u64::MAX] {
            assert_eq!(pushed(|line| push_number(line, number)), number.to_string());
        }
        for text in ["", "plain", "a \"b\"", "tab\t", "\\", "é", "\u{1b}[31m", "\u{7f}"] {
            assert_eq!(pushed(|line| push_json(line, text)), serde_json::to_string(text).unwrap());
        }
        let time = pushed(push_time);
        assert!(time.parse::<Timestamp>().is_ok() && time.len() == "2026-01-02T03:04:05.678901Z".len(), "{time}");
    }
}
