//! A foreign implementation of RFC 6455, to compare ours with.

use std::io::{self, Cursor, Read, Write};

use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use wsbouncer::frame::Fault;

/// Where frames end, and how many messages have by then.
pub fn foreign_frames(bytes: &[u8]) -> Vec<(usize, u64)> {
    let (mut ends, mut messages, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let mut cursor = Cursor::new(&bytes[at..]);
        let Ok(Some((header, length))) = FrameHeader::parse(&mut cursor) else { break };
        let end = at + usize::try_from(cursor.position() + length).unwrap();
        if end > bytes.len() {
            break;
        }
        messages += u64::from(header.is_final && matches!(header.opcode, OpCode::Data(_)));
        ends.push((end, messages));
        at = end;
    }
    ends
}

/// Bytes to read; what is written goes nowhere.
pub struct Readable<'b>(pub &'b [u8]);

impl Read for Readable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut self.0, buffer)
    }
}

impl Write for Readable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What came of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub messages: u64,
    pub close: Option<Option<u16>>,
    pub fault: Option<Fault>,
}

pub fn foreign_read(bytes: &[u8], masked: bool) -> Outcome {
    let role = if masked { Role::Server } else { Role::Client };
    let config = WebSocketConfig::default().read_buffer_size(4096).max_message_size(None).max_frame_size(None);
    let mut socket = WebSocket::from_raw_socket(Readable(bytes), role, Some(config));
    let mut found = Outcome::default();
    loop {
        match socket.read() {
            Ok(Message::Text(_) | Message::Binary(_)) => found.messages += 1,
            Ok(Message::Close(close)) => found.close = Some(close.map(|close| close.code.into())),
            Ok(_) => {}
            Err(error) => {
                found.fault = fault_of(&error);
                return found;
            }
        }
    }
}

fn fault_of(error: &Error) -> Option<Fault> {
    let Error::Protocol(error) = error else {
        assert!(matches!(error, Error::ConnectionClosed), "{error:?}");
        return None;
    };
    Some(match error {
        ProtocolError::ResetWithoutClosingHandshake => return None,
        ProtocolError::InvalidOpcode(_) => Fault::ReservedOpcode,
        ProtocolError::UnmaskedFrameFromClient => Fault::NotMasked,
        ProtocolError::MaskedFrameFromServer => Fault::Masked,
        ProtocolError::NonZeroReservedBits => Fault::ReservedBits,
        ProtocolError::FragmentedControlFrame => Fault::FragmentedControl,
        ProtocolError::ControlFrameTooBig | ProtocolError::InvalidCloseSequence => Fault::ControlLength,
        ProtocolError::UnexpectedContinueFrame => Fault::UnexpectedContinuation,
        ProtocolError::ExpectedFragment(_) => Fault::ExpectedContinuation,
        ProtocolError::ReceivedAfterClosing => Fault::AfterClose,
        other => panic!("{other:?}"),
    })
}
