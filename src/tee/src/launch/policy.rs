//! The guest policy (AMD 56860 §4.3, table 9): what the firmware lets the host do with the guest.

use std::fmt;
use std::str::FromStr;

/// A version of the firmware's ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbiVersion {
    /// Incompatible versions differ in this.
    pub major: u8,
    /// Grows with what is added.
    pub minor: u8,
}

/// A guest policy, all 64 bits known. As text it is a list such as `abi=0.31,smt,single-socket`, or `0x30000`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy(u64);

/// Why bits or a text are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Bit 17 is zero.
    #[error("guest policy {0:#x} lacks bit 17, which must be one")]
    Reserved17(u64),
    /// Bits that no specification known here gives a meaning.
    #[error("guest policy {0:#x} has reserved bits")]
    Reserved(u64),
    /// A word that names no policy bit.
    #[error(
        "{0:?} is not a part of a guest policy (abi=MAJOR.MINOR, smt, migration-agent, debug, single-socket, cxl, \
         aes-256-xts, rapl-disabled, ciphertext-hiding, page-swap-disabled, or all of it in hexadecimal)"
    )]
    Word(String),
    /// A word twice.
    #[error("{0:?} is given twice")]
    Twice(String),
}

const RESERVED_ONE: u64 = 1 << 17;

/// Name and bit of everything but the ABI.
const FLAGS: [(&str, u64); 9] = [
    ("smt", Policy::SMT),
    ("migration-agent", Policy::MIGRATE_MA),
    ("debug", Policy::DEBUG),
    ("single-socket", Policy::SINGLE_SOCKET),
    ("cxl", Policy::CXL_ALLOW),
    ("aes-256-xts", Policy::MEM_AES_256_XTS),
    ("rapl-disabled", Policy::RAPL_DIS),
    ("ciphertext-hiding", Policy::CIPHERTEXT_HIDING),
    ("page-swap-disabled", Policy::PAGE_SWAP_DISABLE),
];

impl Policy {
    /// The host may run other threads of the guest's cores.
    pub const SMT: u64 = 1 << 16;
    /// The guest may be bound to a migration agent.
    pub const MIGRATE_MA: u64 = 1 << 18;
    /// The host may read and write the guest's memory for debugging.
    pub const DEBUG: u64 = 1 << 19;
    /// The guest runs on one socket only.
    pub const SINGLE_SOCKET: u64 = 1 << 20;
    /// CXL devices and memory may be populated.
    pub const CXL_ALLOW: u64 = 1 << 21;
    /// Memory is encrypted with AES-256-XTS, never AES-128-XEX.
    pub const MEM_AES_256_XTS: u64 = 1 << 22;
    /// Running Average Power Limit is off.
    pub const RAPL_DIS: u64 = 1 << 23;
    /// The host does not see the ciphertext of the guest's DRAM.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 24;
    /// SNP_PAGE_MOVE, SNP_PAGE_SWAP_OUT and _IN are refused.
    pub const PAGE_SWAP_DISABLE: u64 = 1 << 25;

    /// Nothing allowed, nothing demanded, any ABI.
    pub const STRICT: Self = Self(RESERVED_ONE);

    /// The policy with these bits, all of which must be known.
    pub fn from_bits(bits: u64) -> Result<Self, PolicyError> {
        let known = FLAGS
            .iter()
            .fold(RESERVED_ONE | 0xffff, |known, (_, flag)| known | flag);
        if bits & RESERVED_ONE == 0 {
            return Err(PolicyError::Reserved17(bits));
        }
        if bits & !known != 0 {
            return Err(PolicyError::Reserved(bits));
        }
        Ok(Self(bits))
    }

    /// As SNP_LAUNCH_START, ID blocks and reports have it.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The policy with `flag` (one of the constants) set.
    #[must_use]
    pub fn with(self, flag: u64) -> Self {
        let known = FLAGS.iter().fold(0, |known, (_, flag)| known | flag);
        Self(self.0 | flag & known)
    }

    /// The policy for firmware of this ABI version or later.
    #[must_use]
    pub fn with_abi(self, abi: AbiVersion) -> Self {
        Self(self.0 & !0xffff | u64::from(abi.major) << 8 | u64::from(abi.minor))
    }

    /// Whether all of `flags` are set.
    pub fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// The least ABI version that the firmware must have.
    pub fn abi(self) -> AbiVersion {
        let [minor, major, ..] = self.0.to_le_bytes();
        AbiVersion { major, minor }
    }
}

impl fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for AbiVersion {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let parse = || {
            let (major, minor) = text.split_once('.')?;
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        parse().ok_or_else(|| PolicyError::Word(text.to_owned()))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "abi={}", self.abi())?;
        FLAGS
            .iter()
            .filter(|(_, flag)| self.has(*flag))
            .try_for_each(|(name, _)| write!(f, ",{name}"))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policy({self})")
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if let Some(digits) = text.strip_prefix("0x") {
            let bits = match digits.starts_with('+') {
                true => None,
                false => u64::from_str_radix(digits, 16).ok(),
            };
            return Self::from_bits(bits.ok_or_else(|| PolicyError::Word(text.to_owned()))?);
        }
        let mut policy = Self::STRICT;
        let mut seen = Vec::new();
        for word in text.split(',') {
            let name = word.split_once('=').map_or(word, |(name, _)| name);
            if seen.contains(&name) {
                return Err(PolicyError::Twice(name.to_owned()));
            }
            policy = policy.with_word(word)?;
            seen.push(name);
        }
        Ok(policy)
    }
}

impl Policy {
    fn with_word(self, word: &str) -> Result<Self, PolicyError> {
        if let Some(version) = word.strip_prefix("abi=") {
            return Ok(self.with_abi(version.parse().map_err(|_| PolicyError::Word(word.to_owned()))?));
        }
        let flag = FLAGS.iter().find(|(name, _)| *name == word);
        flag.map(|(_, flag)| self.with(*flag))
            .ok_or_else(|| PolicyError::Word(word.to_owned()))
    }
}

impl serde::Serialize for Policy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod policy_test;
