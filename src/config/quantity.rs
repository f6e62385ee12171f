//! Durations and sizes as people write them: a whole number and a unit.

use std::time::Duration;

use super::problem::Wrong;

type Parsed<T> = Result<T, Wrong>;

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

/// `1024B`, `64KiB`, `1MiB`, `2GiB`: at least one byte.
pub fn size(text: &str) -> Parsed<u64> {
    const UNITS: &str = "write a whole number and one unit: 512B, 64KiB, 1MiB or 2GiB";
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let bytes = match unit {
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
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(bytes)) {
        Some(0) => Err(Wrong::new("this must be at least 1B").hint("leave it out for no limit")),
        Some(total) if total <= LARGEST => Ok(total),
        _ => Err(Wrong::new("this is larger than a million GiB")),
    }
}

/// Far beyond what any connection carries, and far below where sums of it end.
const LARGEST: u64 = 1_000_000 << 30;

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
    fn sizes_have_a_unit() {
        let good = [("1B", 1), ("1024B", 1024), ("64KiB", 65_536), ("1MiB", 1 << 20), ("3GiB", 3 << 30)];
        for (text, bytes) in good {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert!(size("1000000GiB").is_ok() && size("1000001GiB").is_err());
        for text in ["", "5", "B", "0B", "0KiB", "1.5MiB", "-1B", "1 KiB", "1kib", "1KB", "1M", "99999999999999999999B"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
