//! Sizes as people write them.

use super::problem::Wrong;

/// `1024B`, `64KiB`, `1MiB`, `1GiB`.
pub fn size(text: &str) -> Result<u64, Wrong> {
    const UNITS: &str = "write a whole number and one unit: 1024B, 64KiB, 16MiB or 1GiB";
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "" if !number.is_empty() => return Err(Wrong::new("this size has no unit").hint(UNITS)),
        _ => return Err(Wrong::new("this is not a size").hint(UNITS)),
    };
    if number.is_empty() {
        return Err(Wrong::new("this is not a size").hint(UNITS));
    }
    let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(bytes));
    total.filter(|total| *total <= LARGEST).ok_or_else(|| Wrong::new("this is larger than a million GiB"))
}

const LARGEST: u64 = 1_000_000 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        let good = [("0B", 0), ("1024B", 1024), ("64KiB", 65_536), ("16MiB", 16_777_216), ("1GiB", 1_073_741_824)];
        for (text, bytes) in good {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "5", "KiB", "1.5MiB", "-1B", "1kB", "1MB", "1 MiB", "64K", "64kib", "99999999999999999999B"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("1000001GiB").is_err() && size("17179869184GiB").is_err());
    }
}
