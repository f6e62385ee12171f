//! How long, how much, and when.

use std::time::Duration;

use super::{Parsed, UnixTime};
use crate::config::problem::Wrong;

/// Timers beyond this mean "off", and runtimes round them in odd ways.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// `250ms`, `30s`, `5m`, `2h`, `1d`.
pub fn duration(text: &str) -> Parsed<Duration> {
    const UNITS: &str = "write a whole number and one unit: 250ms, 30s, 5m, 2h or 1d";
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" if !number.is_empty() => return Err(Wrong::new("this duration has no unit").hint(UNITS)),
        _ => return Err(Wrong::new("this is not a duration").hint(UNITS)),
    };
    if number.is_empty() {
        return Err(Wrong::new("this is not a duration").hint(UNITS));
    }
    let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis)).map(Duration::from_millis);
    total.filter(|total| *total <= LONGEST).ok_or_else(|| Wrong::new("this is longer than ten years"))
}

/// A duration that must not be nothing.
pub fn some_duration(text: &str) -> Parsed<Duration> {
    duration(text)
        .and_then(|total| if total.is_zero() { Err(Wrong::new("this must be longer than nothing")) } else { Ok(total) })
}

/// A duration, or `off`.
pub fn duration_or_off(text: &str) -> Parsed<Option<Duration>> {
    if text == "off" {
        return Ok(None);
    }
    match duration(text) {
        Ok(total) if total.is_zero() => {
            Err(Wrong::new("this must be longer than nothing").hint("write off for no limit"))
        }
        other => other.map(Some),
    }
}

/// `512B`, `4KiB`, `1MiB`, `1GiB`: bytes.
pub fn size(text: &str) -> Parsed<u64> {
    const UNITS: &str = "write a whole number and one unit: 512B, 64KiB, 1MiB or 2GiB";
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" if !number.is_empty() => return Err(Wrong::new("this size has no unit").hint(UNITS)),
        "kB" | "KB" | "MB" | "GB" | "K" | "M" | "G" | "k" => {
            return Err(Wrong::new("units are powers of 1024 here").hint(UNITS));
        }
        _ => return Err(Wrong::new("this is not a size").hint(UNITS)),
    };
    if number.is_empty() {
        return Err(Wrong::new("this is not a size").hint(UNITS));
    }
    let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    total.filter(|total| *total <= LARGEST).ok_or_else(|| Wrong::new("this is larger than a million GiB"))
}

/// Far beyond what any connection carries, and far below where sums of it end.
const LARGEST: u64 = 1_000_000 << 30;

/// A size that must not be nothing.
pub fn some_size(text: &str) -> Parsed<u64> {
    size(text).and_then(|total| match total {
        0 => Err(Wrong::new("this must be at least 1B").hint("leave it out for no limit")),
        total => Ok(total),
    })
}

/// `2027-10-01T00:00:00Z`, or `2027-12-31` for the moment at which that day begins in UTC.
pub fn date(text: &str) -> Parsed<UnixTime> {
    let day = || -> Option<jiff::Timestamp> {
        let date = (text.len() == 10).then(|| text.parse::<jiff::civil::Date>().ok()).flatten()?;
        // 9999-12-31, which stands for "never" in many tools, is just beyond the last moment that is known here.
        let moment = date.to_zoned(jiff::tz::TimeZone::UTC).map(|day| day.timestamp());
        Some(moment.unwrap_or(jiff::Timestamp::MAX))
    };
    let time = text.parse::<jiff::Timestamp>().ok().or_else(day);
    time.map(|time| UnixTime(time.as_second())).ok_or_else(|| {
        Wrong::new("this is not a date")
            .hint("write 2027-12-31, or 2027-12-31T18:00:00Z with its offset from UTC (Z, +02:00)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let good = [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000), ("0s", 0)];
        for (text, millis) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "1.5h", "-1s", "1h30m", "5 m", "5M", "99999999999999999999s", "4000d", "٣s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration_or_off("off"), Ok(None));
        assert!(duration_or_off("0s").is_err() && some_duration("0ms").is_err());
    }

    #[test]
    fn dates_are_moments() {
        assert_eq!(date("1970-01-02"), Ok(UnixTime(86_400)));
        assert_eq!(date("1970-01-02T00:00:00Z"), Ok(UnixTime(86_400)));
        assert_eq!(date("1970-01-02T02:00:00+02:00"), Ok(UnixTime(86_400)));
        assert_eq!(date("9999-12-31"), Ok(UnixTime(jiff::Timestamp::MAX.as_second())));
        for text in ["", "2027", "2027-13-01", "2027-02-30", "2027-01-01T00:00:00", "1.1.2027", "tomorrow"] {
            assert!(date(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        for (text, bytes) in [("0B", 0), ("1B", 1), ("4KiB", 4096), ("1MiB", 1 << 20), ("2GiB", 2 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "4096", "KiB", "1.5MiB", "1 MiB", "4kb", "-1B", "99999999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
