//! W3C Trace Context: which trace a request belongs to. <https://www.w3.org/TR/trace-context/>

use std::fmt;

use http::HeaderMap;
use http::header::HeaderName;

use crate::fields::only;
use crate::random;

/// Which span of which trace asks.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems add to it. Means nothing without the other.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// One span, as others name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

/// Somebody records this trace (section 3.2.2.5.1).
const SAMPLED: u8 = 1;
/// The flags that are known: the other one, of level 2, says that the trace's id is random.
const KNOWN_FLAGS: u8 = 3;
/// `00-` trace `-` span `-` flags.
const LENGTH: usize = 55;

impl TraceContext {
    /// What a request says. `None` where it says nothing, says it twice, or says it wrong; then it begins a trace of its own
    /// (section 4.3).
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        only(headers, &TRACEPARENT).ok().flatten().and_then(Self::parse)
    }

    /// Reads the value of a `traceparent`: of version 00 exactly (section 3.2.2), of later ones the part that is known
    /// (section 4.3).
    pub fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.as_bytes().split_at_checked(LENGTH)?;
        let [version] = from_hex(&known[..2])?;
        let is_whole = rest.is_empty() || (version != 0 && rest[0] == b'-');
        let is_parted = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        if version == 0xff || !is_whole || !is_parted {
            return None;
        }
        let (trace, span) = (from_hex(&known[3..35])?, from_hex(&known[36..52])?);
        let [flags] = from_hex(&known[53..])?;
        let is_none = trace == [0; 16] || span == [0; 8];
        (!is_none).then_some(Self { trace, span, flags: flags & KNOWN_FLAGS })
    }

    /// The first span of a new trace, which is recorded.
    pub fn begin() -> Self {
        Self { trace: random::bytes(), span: random::bytes(), flags: SAMPLED }
    }

    /// A new span of this trace.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span: random::bytes(), ..*self }
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub fn trace(&self) -> &[u8; 16] {
        &self.trace
    }

    pub fn span(&self) -> &[u8; 8] {
        &self.span
    }

    pub fn flags(&self) -> u8 {
        self.flags
    }
}

/// As it stands in `traceparent`, version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

/// In lower case, as the recommendation has it.
fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_good_one_goes_both_ways() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), GOOD);
        assert!(!TraceContext::parse(&GOOD.replace("-01", "-02")).unwrap().is_sampled());
    }

    #[test]
    fn of_a_later_version_the_known_part_counts() {
        for later in
            ["cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", &format!("01{}-more.to-come", &GOOD[2..])]
        {
            assert_eq!(TraceContext::parse(later), TraceContext::parse(GOOD), "{later}");
        }
        let unknown = TraceContext::parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fd").unwrap();
        assert_eq!(unknown.to_string(), GOOD, "unknown flags are not set on what we write");
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333\u{fc}-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_child_is_of_the_same_trace() {
        let parent = TraceContext::parse(GOOD).unwrap();
        let child = parent.child();
        assert_eq!((child.trace(), child.flags()), (parent.trace(), parent.flags()));
        assert_ne!(child.span(), parent.span());
        assert!(TraceContext::begin().is_sampled());
    }
}
