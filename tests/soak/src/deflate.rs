//! permessage-deflate (RFC 7692): what is agreed, and what a message is on the wire and back.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// What ends the output of a flush, and does not travel (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// How far back a message may refer to the ones before it (`max_window_bits` of 15).
const WINDOW: usize = 32 * 1024;

/// What the two ends of a tunnel agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deflate {
    Off,
    /// `no_context_takeover`, both ways.
    Alone,
    /// Context takeover: each message may refer to the ones before it.
    Linked,
}

impl Deflate {
    /// The value of `Sec-WebSocket-Extensions` that asks for it.
    pub(crate) fn offer(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Alone => Some("permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
            Self::Linked => Some("permessage-deflate; client_max_window_bits"),
        }
    }

    /// The value that agrees to it.
    pub(crate) fn answer(self) -> Option<&'static str> {
        match self {
            Self::Off | Self::Alone => self.offer(),
            Self::Linked => Some("permessage-deflate"),
        }
    }
}

/// What one end keeps from message to message of one direction: the last of the text that went before. There are
/// thousands of us, and the rest of an encoder's or a decoder's state is ten times as large: each message has its own.
/// An encoder that is used again would look at what an earlier text has left in it, and could choose other references.
pub(crate) struct Context {
    is_linked: bool,
    window: Vec<u8>,
}

impl Context {
    pub(crate) fn new(deflate: Deflate) -> Self {
        Self { is_linked: deflate == Deflate::Linked, window: Vec::new() }
    }

    fn remember(&mut self, plain: &[u8]) {
        if self.is_linked {
            self.window.extend_from_slice(&plain[plain.len().saturating_sub(WINDOW)..]);
            let extra = self.window.len().saturating_sub(WINDOW);
            self.window.drain(..extra);
        }
    }

    /// The payload of a whole message. The same for the same text, whoever does it.
    pub(crate) fn deflate(&mut self, plain: &[u8]) -> Vec<u8> {
        // Enough for what does not get smaller, too: a second call would write a second end.
        let mut payload = Vec::with_capacity(plain.len() + plain.len() / 4 + 64);
        let mut encoder = Compress::new(Compression::fast(), false);
        if !self.window.is_empty() {
            encoder.set_dictionary(&self.window).expect("an encoder at its beginning takes a window");
        }
        encoder.compress_vec(plain, &mut payload, FlushCompress::Sync).expect("any text can be deflated");
        assert_eq!(encoder.total_in(), plain.len() as u64, "all of it");
        assert!(payload.ends_with(&TAIL), "a flush ends so");
        payload.truncate(payload.len() - TAIL.len());
        self.remember(plain);
        payload
    }

    /// The text of a message, of at most this size.
    ///
    /// # Errors
    /// It is none, or a larger one.
    pub(crate) fn inflate(&mut self, mut payload: Vec<u8>, most: usize) -> Result<Vec<u8>, String> {
        payload.extend_from_slice(&TAIL);
        let mut plain = Vec::with_capacity(most + 1);
        let mut decoder = Decompress::new(false);
        if !self.window.is_empty() {
            decoder.set_dictionary(&self.window).map_err(|error| error.to_string())?;
        }
        let done = decoder.decompress_vec(&payload, &mut plain, FlushDecompress::Sync);
        done.map_err(|error| format!("a message that cannot be inflated: {error}"))?;
        if decoder.total_in() != payload.len() as u64 || plain.len() > most {
            return Err("a message that inflates to more than was sent".to_owned());
        }
        self.remember(&plain);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<Vec<u8>> {
        let mut rng = crate::stream::Rng::new(5);
        let sizes = [0, 1, 2, 300, 70_000, 9, 40_000, 0, 1000, 32_768];
        sizes.into_iter().map(|size| crate::stream::plain(&mut rng, size)).collect()
    }

    #[test]
    fn what_was_deflated_is_inflated() {
        for deflate in [Deflate::Alone, Deflate::Linked] {
            let (mut from, mut to) = (Context::new(deflate), Context::new(deflate));
            for text in texts() {
                let payload = from.deflate(&text);
                assert!(text.len() < 100 || payload.len() < text.len() * 3 / 4, "{} {}", text.len(), payload.len());
                assert_eq!(to.inflate(payload, text.len()), Ok(text));
            }
        }
    }

    #[test]
    fn a_text_is_deflated_to_the_same_whatever_went_before() {
        for deflate in [Deflate::Alone, Deflate::Linked] {
            let mut first = Context::new(deflate);
            let once: Vec<_> = texts().iter().map(|text| first.deflate(text)).collect();
            let mut second = Context::new(deflate);
            for (text, payload) in texts().iter().zip(once) {
                for other in texts() {
                    Context::new(Deflate::Alone).deflate(&other);
                }
                assert!(second.deflate(text) == payload, "{deflate:?} {}", text.len());
            }
        }
    }

    /// What an ordinary end does that keeps its decoder, instead of a window.
    #[test]
    fn a_decoder_that_is_kept_reads_linked_messages() {
        let (mut from, mut kept) = (Context::new(Deflate::Linked), Decompress::new(false));
        for text in texts() {
            let payload = [&from.deflate(&text)[..], &TAIL].concat();
            let mut plain = Vec::with_capacity(text.len() + 64);
            kept.decompress_vec(&payload, &mut plain, FlushDecompress::Sync).unwrap();
            assert_eq!(plain, text);
        }
    }

    #[test]
    fn linked_messages_need_the_ones_before() {
        let (mut from, mut to) = (Context::new(Deflate::Linked), Context::new(Deflate::Alone));
        let text = texts().swap_remove(4);
        let first = from.deflate(&text);
        let second = from.deflate(&text);
        assert!(second.len() < first.len());
        assert_eq!(to.inflate(first, text.len()).as_ref(), Ok(&text));
        assert_ne!(to.inflate(second, text.len()).as_ref(), Ok(&text));
    }

    #[test]
    fn a_message_that_is_larger_is_an_error() {
        let text = vec![7; 1000];
        let payload = Context::new(Deflate::Alone).deflate(&text);
        assert!(Context::new(Deflate::Alone).inflate(payload, 999).is_err());
    }
}
