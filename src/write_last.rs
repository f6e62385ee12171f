//! Streams that can send their end together with their last bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncWrite, DuplexStream};

/// A stream whose end can go out together with its last bytes.
pub trait WriteLast: AsyncWrite {
    /// Writes as [`AsyncWrite::poll_write`] does. The end of the stream has to follow at once: until then what was written
    /// may be held back.
    fn poll_write_last(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write(cx, bytes)
    }
}

/// What tests relay over.
impl WriteLast for DuplexStream {}
