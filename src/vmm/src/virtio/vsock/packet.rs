//! The header of every packet (VIRTIO 1.2 §5.10.6).
//!
//! ```text
//!  0        8        16       20       24      28      30   32      36          40       44
//!  │ src_cid│ dst_cid│src_port│dst_port│ len   │ type  │ op │ flags │ buf_alloc │ fwd_cnt│ payload …
//! ```

use crate::virtio::queue::Buffer;

/// Size of the header, in bytes.
pub const HEADER: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// The only socket type there is here.
pub const TYPE_STREAM: u16 = 1;

/// Flags of [`Op::Shutdown`]: the sender of the packet will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of the packet will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Agrees to one.
    Response,
    /// Ends one at once, or refuses it.
    Reset,
    /// Ends one direction or both in an orderly way.
    Shutdown,
    /// Carries data.
    Data,
    /// Says how much the sender can take.
    CreditUpdate,
    /// Asks the other side to say so.
    CreditRequest,
    /// None of the protocol.
    Unknown(u16),
}

impl Op {
    fn from_code(code: u16) -> Op {
        match code {
            1 => Op::Request,
            2 => Op::Response,
            3 => Op::Reset,
            4 => Op::Shutdown,
            5 => Op::Data,
            6 => Op::CreditUpdate,
            7 => Op::CreditRequest,
            other => Op::Unknown(other),
        }
    }

    fn code(self) -> u16 {
        match self {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(code) => code,
        }
    }
}

/// A private copy of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Address of the sender.
    pub src_cid: u64,
    /// Address of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Type of the socket.
    pub kind: u16,
    /// What the packet means.
    pub op: Op,
    /// Depends on `op`.
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of it since the connection began, wrapping around.
    pub fwd_cnt: u32,
}

impl Header {
    /// Copies the header from the front of `buffer`, if there is room for one.
    pub fn read(buffer: &mut Buffer<'_>) -> Option<Header> {
        let bytes: [u8; HEADER] = buffer.read()?;
        Some(Header {
            src_cid: u64::from_le_bytes(field(&bytes, 0)),
            dst_cid: u64::from_le_bytes(field(&bytes, 8)),
            src_port: u32::from_le_bytes(field(&bytes, 16)),
            dst_port: u32::from_le_bytes(field(&bytes, 20)),
            len: u32::from_le_bytes(field(&bytes, 24)),
            kind: u16::from_le_bytes(field(&bytes, 28)),
            op: Op::from_code(u16::from_le_bytes(field(&bytes, 30))),
            flags: u32::from_le_bytes(field(&bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(&bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(&bytes, 40)),
        })
    }

    /// The header as it lies in memory.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.code().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The field at the constant offset `at`.
fn field<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
