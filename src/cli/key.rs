//! `key new` and `key hash`: secrets for people, digests for the file.

use std::io::{self, BufRead, IsTerminal as _, Read as _};
use std::process::ExitCode;

use zeroize::Zeroizing;

use super::{KeyCommand, print, remark};
use crate::secret::{Digest, Secret};

pub fn run(command: &KeyCommand) -> ExitCode {
    let result = match command {
        KeyCommand::New(args) => new(&args.id),
        KeyCommand::Hash => hash(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            remark(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn new(id: &str) -> io::Result<()> {
    let key = generate()?;
    remark("First the key: give it to the client now, it is not shown again. Then the lines for the file.");
    let text = Zeroizing::new(format!("{}\n\n{}", *key, yaml(id, Digest::of(key.as_bytes()))));
    print(&text)
}

fn hash() -> io::Result<()> {
    let stdin = io::stdin();
    let terminal = stdin.is_terminal();
    if terminal {
        remark("The secret, then Enter:");
    }
    let secret = read_secret(&mut stdin.lock(), terminal)?;
    print(&format!("sha256: \"{}\"\n", secret.digest().to_hex()))
}

/// The one line that `input` holds, without its line end. At a terminal only that line is waited for; from a pipe all
/// is read, since the digest of the first of several lines is not what anyone wants.
fn read_secret(input: &mut impl BufRead, first_line_only: bool) -> io::Result<Secret> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
    // The room for all of it from the start: a vector that grows leaves copies behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 2));
    let mut input = input.take(MAX_SECRET as u64 + 2);
    if first_line_only {
        input.read_until(b'\n', &mut bytes)?;
    } else {
        input.read_to_end(&mut bytes)?;
    }
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(invalid("there is no secret on stdin"));
    }
    if line.contains(&b'\n') {
        return Err(invalid("there is more than one line on stdin; a secret is one line"));
    }
    if line.len() > MAX_SECRET {
        return Err(invalid("the secret is longer than 8192 bytes, more than a request's head may hold"));
    }
    if line.trim_ascii().len() != line.len() {
        remark("warning: the secret begins or ends with a blank; a header cannot carry that");
    }
    Ok(Secret::new(line))
}

/// A fresh key: prefix, random characters, checksum.
pub(super) fn generate() -> io::Result<Zeroizing<String>> {
    let mut key = Zeroizing::new(String::with_capacity(PREFIX.len() + RANDOM + CHECKSUM));
    key.push_str(PREFIX);
    let mut bytes = Zeroizing::new([0; 64]);
    while key.len() < PREFIX.len() + RANDOM {
        getrandom::fill(&mut *bytes).map_err(|error| io::Error::other(format!("no random numbers: {error}")))?;
        let missing = PREFIX.len() + RANDOM - key.len();
        // 248 is the largest multiple of 62 in a byte; what lies above would make the first digits more frequent.
        key.extend(bytes.iter().filter(|byte| **byte < 248).take(missing).map(|byte| digit(u32::from(*byte))));
    }
    let sum = checksum(key.as_bytes());
    key.extend(sum);
    Ok(key)
}

/// The lines that let a key in, as one item of a list.
pub(super) fn yaml(id: &str, digest: Digest) -> String {
    format!("- id: {}\n  secrets:\n    - sha256: \"{}\"\n", yaml_scalar(id), digest.to_hex())
}

/// For clap: what may be the id of a key.
pub(super) fn parse_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
    if (1..=128).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.into());
    }
    Err("an id is 1 to 128 visible ASCII characters; blanks, quotes and the backslash are not allowed".into())
}

/// An id as YAML: bare when every reader takes it for text, in quotes otherwise (`no`, `1e3`, `a: b`, `#x`).
/// Ids have no quotes and no backslashes, so that there is nothing to escape.
fn yaml_scalar(id: &str) -> String {
    const NOT_TEXT: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let bare = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@'))
        && !NOT_TEXT.contains(&id.to_ascii_lowercase().as_str());
    if bare { id.into() } else { format!("\"{id}\"") }
}

fn checksum(text: &[u8]) -> [char; CHECKSUM] {
    let mut rest = crc32(text);
    let mut digits = ['0'; CHECKSUM];
    for place in digits.iter_mut().rev() {
        *place = digit(rest);
        rest /= 62;
    }
    digits
}

/// The last digit of a number in base 62.
fn digit(number: u32) -> char {
    char::from(ALPHABET[number as usize % ALPHABET.len()])
}

/// CRC-32 as in zlib and gzip. A table would be for speed, and this runs over 34 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

const PREFIX: &str = "wsb_";
/// 30 digits of base 62 are 178 bits, more than the 160 that are promised.
const RANDOM: usize = 30;
/// 62^6 is just above 2^32.
const CHECKSUM: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const MAX_SECRET: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What a secret scanner would do.
    fn looks_like_a_key(text: &str) -> bool {
        text.len() == 40
            && text.starts_with("wsb_")
            && text[4..].bytes().all(|byte| ALPHABET.contains(&byte))
            && text[34..] == checksum(&text.as_bytes()[..34]).iter().collect::<String>()
    }

    #[test]
    fn crc32_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
        assert_eq!(checksum(b"").iter().collect::<String>(), "000000");
    }

    /// A key made by hand with Python's zlib.crc32, so that the format that the help describes is the format.
    #[test]
    fn the_format_is_as_described() {
        assert!(looks_like_a_key("wsb_0123456789ABCDEFGHIJKLMNOPQRST1FQk5l"));
    }

    #[test]
    fn keys_are_fresh_and_well_formed() {
        let keys: HashSet<String> = (0..200).map(|_| generate().unwrap().to_string()).collect();
        assert_eq!(keys.len(), 200);
        for key in &keys {
            assert!(looks_like_a_key(key), "{key}");
        }
        let seen: HashSet<u8> = keys.iter().flat_map(|key| key.bytes().skip(4).take(30)).collect();
        assert_eq!(seen.len(), 62, "every digit occurs among 6000");
    }

    #[test]
    fn one_wrong_character_is_noticed() {
        let key = generate().unwrap();
        for place in 4..40 {
            let mut typo = key.as_bytes().to_vec();
            typo[place] = if typo[place] == b'x' { b'y' } else { b'x' };
            assert!(!looks_like_a_key(&String::from_utf8(typo).unwrap()), "at {place}");
        }
    }

    #[test]
    fn ids() {
        let longest = "x".repeat(128);
        for good in ["a", "dashboard", "user@example.com", "#1", "a:b", "{x}", &longest] {
            assert_eq!(parse_id(good).as_deref(), Ok(good));
        }
        let too_long = "x".repeat(129);
        for bad in ["", " ", "a b", "a\"b", "it's", "a\\b", "a\n", "a\x7f", "schlüssel", &too_long] {
            assert!(parse_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_are_quoted_where_yaml_would_not_read_text() {
        for bare in ["dashboard", "user@example.com", "a.b/c_d-e", "nothing"] {
            assert_eq!(yaml_scalar(bare), bare);
        }
        for quoted in ["no", "True", "NULL", "~", "1", "1e3", "0x1f", ".inf", "-", "#1", "a:b", "{x}", "a,b", "&a", "*"]
        {
            assert_eq!(yaml_scalar(quoted), format!("\"{quoted}\""));
        }
    }

    /// Every id that is allowed comes back from YAML as the text that it was.
    #[test]
    fn yaml_reads_back() {
        for byte in (0x21..0x7f).map(char::from) {
            for id in [format!("{byte}"), format!("{byte}a"), format!("a{byte}"), format!("a{byte}b")] {
                if parse_id(&id).is_err() {
                    continue;
                }
                let text = yaml(&id, Digest::of(b"x"));
                let list: serde_json::Value = serde_yaml::from_str(&text).unwrap();
                assert_eq!(list[0]["id"], id, "{text}");
                assert_eq!(list[0]["secrets"][0]["sha256"], Digest::of(b"x").to_hex());
            }
        }
    }

    fn read(mut input: &[u8], first_line_only: bool) -> Result<String, String> {
        let secret = read_secret(&mut input, first_line_only);
        secret.map(|secret| secret.digest().to_hex()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_line_is_the_secret() {
        let expected = Ok(Digest::of(b"s3cret").to_hex());
        for input in ["s3cret", "s3cret\n", "s3cret\r\n"] {
            assert_eq!(read(input.as_bytes(), false), expected);
            assert_eq!(read(input.as_bytes(), true), expected);
        }
        assert_eq!(read(b"s3cret\nmore", true), expected);
        assert_eq!(read(b" s3cret", false), Ok(Digest::of(b" s3cret").to_hex()));
    }

    #[test]
    fn no_line_or_many_are_refused() {
        for empty in ["", "\n", "\r\n"] {
            assert!(read(empty.as_bytes(), false).unwrap_err().contains("no secret"));
        }
        for many in ["a\nb", "a\nb\n", "a\n\n"] {
            assert!(read(many.as_bytes(), false).unwrap_err().contains("more than one line"));
        }
        assert!(read(&[b'x'; MAX_SECRET + 1], false).unwrap_err().contains("8192"));
        assert!(read(&[b'x'; MAX_SECRET], false).is_ok());
        assert!(read(&[b'x'; MAX_SECRET * 4], false).unwrap_err().contains("8192"));
    }
}
