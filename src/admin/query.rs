//! The query of a request to the operator's listener. What is not known is refused: a filter that is misspelt must not be
//! taken for none.

/// Named values, each at most once.
#[derive(Debug, Default)]
pub struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Reads a query of which these names are known.
    ///
    /// # Errors
    /// What is wrong with it, as a line for people.
    pub fn parse(text: Option<&str>, known: &[&'static str]) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = known.iter().find(|one| **one == name) else {
                return Err(format!("known parameters: {}\n", known.join(", ")));
            };
            if query.get(name).is_some() {
                return Err(format!("{name} stands twice\n"));
            }
            match decoded(value) {
                Some(value) if !value.is_empty() => query.0.push((name, value)),
                _ => return Err(format!("{name} has no value, or not one that can be read\n")),
            }
        }
        Ok(query)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| &**value)
    }

    /// A count from 1 on.
    ///
    /// # Errors
    /// What it must be.
    pub fn count(&self, name: &str, default: usize, most: usize) -> Result<usize, String> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let count = text.parse().ok().filter(|count| (1..=most).contains(count));
        count.ok_or_else(|| format!("{name} must be a number from 1 to {most}\n"))
    }

    /// Whole seconds: `30s`, `5m`, `2h`, `1d`.
    ///
    /// # Errors
    /// What it must be.
    pub fn seconds(&self, name: &str, default: i64) -> Result<i64, String> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let read = || {
            let (at, unit) = text.char_indices().next_back()?;
            let factor = [('s', 1), ('m', 60), ('h', 3600), ('d', 86400)].into_iter().find(|(one, _)| *one == unit)?.1;
            text[..at].parse::<u32>().ok().map(|count| i64::from(count) * factor)
        };
        read().ok_or_else(|| format!("{name} must be a duration such as 30m, 24h or 7d\n"))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// What it must be.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(format!("{name} must be true or false\n")),
        }
    }
}

/// Percent codes and plus signs undone; `None` where that gives no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let [high, low, tail @ ..] = tail else { return None };
                let digit = |byte: u8| char::from(byte).to_digit(16);
                bytes.push(u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?);
                rest = tail;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["key", "limit", "quiet"];

    #[test]
    fn a_query_is_read_or_refused() {
        fn read(text: &str) -> Result<Query, String> {
            Query::parse(Some(text), &KNOWN)
        }
        assert!(Query::parse(None, &KNOWN).unwrap().is_empty());
        let query = read("key=a%40b+c&limit=5&quiet=2h").unwrap();
        assert_eq!(
            (query.get("key"), query.count("limit", 1, 9), query.seconds("quiet", 0)),
            (Some("a@b c"), Ok(5), Ok(7200))
        );
        for bad in ["keys=a", "key=", "key", "key=a&key=b", "key=%4", "key=%zz", "key=%ff", "=a", "KEY=a"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for bad in ["0", "10", "x", "-1", "1e3"] {
            assert!(read(&format!("limit={bad}")).unwrap().count("limit", 1, 9).is_err(), "{bad}");
        }
        for bad in ["0", "s", "-1s", "1w", "1.5h", "99999999999d", "1ü"] {
            assert!(read(&format!("quiet={bad}")).unwrap().seconds("quiet", 1).is_err(), "{bad}");
        }
    }
}
