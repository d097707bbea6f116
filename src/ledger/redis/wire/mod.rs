//! What travels between a worker and the Lua scripts: MessagePack, as Redis's `cmsgpack` reads and writes it.
//!
//! Numbers are whole and below 2^53 in size; bytes travel as strings. The layouts are those of the heads of the scripts.

pub mod decode;
pub mod encode;

use crate::ledger::{AccountId, RecordId, SessionId};

/// The largest number that Lua counts exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// A value that is not what the scripts write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger's answer cannot be read: {0}")]
pub struct Malformed(pub &'static str);

/// Names the keys of one epoch of one shard.
#[derive(Debug, Clone)]
pub struct Keyspace {
    pub epoch: u64,
    /// `fg:{07}:`
    shard: String,
    /// `fg:{07}:3:`
    prefix: String,
}

impl Keyspace {
    pub fn new(shard: u32, epoch: u64) -> Keyspace {
        let shard = format!("fg:{{{shard:02x}}}:");
        let prefix = format!("{shard}{epoch}:");
        Keyspace { epoch, shard, prefix }
    }

    /// What all keys of the shard begin with, of whatever epoch.
    pub fn shard_prefix(&self) -> &str {
        &self.shard
    }

    /// What all keys but `meta` begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn meta(&self) -> String {
        format!("{}meta", self.shard)
    }

    pub fn events(&self) -> String {
        self.key("events")
    }

    /// The registry of sessions.
    pub fn sessions(&self) -> String {
        self.key("sessions")
    }

    /// API holds by expiry.
    pub fn holds(&self) -> String {
        self.key("holds")
    }

    pub fn session(&self, session: SessionId) -> String {
        self.key(&format!("sess:{}", session.0))
    }

    /// The accounts that a session holds something of.
    pub fn touched(&self, session: SessionId) -> String {
        self.key(&format!("touch:{}", session.0))
    }

    pub fn account(&self, account: &AccountId) -> String {
        self.key(&format!("acct:{account}"))
    }

    pub fn record(&self, record: RecordId, account: &AccountId) -> String {
        self.key(&format!("rec:{}:{account}", record.0.simple()))
    }

    pub fn ticket(&self, account: &AccountId) -> String {
        self.key(&format!("tick:{account}"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Appends MessagePack to a buffer.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn uint(&mut self, value: u64) {
        match value {
            0..=0x7f => self.0.push(value as u8),
            0x80..=0xff => self.0.extend_from_slice(&[0xcc, value as u8]),
            0x100..=0xffff => self.tagged(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &(value as u32).to_be_bytes()),
            _ => self.tagged(0xcf, &value.to_be_bytes()),
        }
    }

    pub fn int(&mut self, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.uint(value),
            Err(_) => self.tagged(0xd3, &value.to_be_bytes()),
        }
    }

    pub fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    pub fn array(&mut self, len: usize) {
        match len {
            0..=0xf => self.0.push(0x90 | len as u8),
            0x10..=0xffff => self.tagged(0xdc, &(len as u16).to_be_bytes()),
            _ => self.tagged(0xdd, &(len as u32).to_be_bytes()),
        }
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        match bytes.len() {
            len @ 0..=0x1f => self.0.push(0xa0 | len as u8),
            len @ 0x20..=0xffff => self.tagged(0xda, &(len as u16).to_be_bytes()),
            len => self.tagged(0xdb, &(len as u32).to_be_bytes()),
        }
        self.0.extend_from_slice(bytes);
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(tag);
        self.0.extend_from_slice(bytes);
    }
}

/// Reads MessagePack from the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// Bytes that are still to be read.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a whole number comes next.
    pub fn is_number(&self) -> bool {
        matches!(self.0.first(), Some(0x00..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff))
    }

    pub fn int(&mut self) -> Result<i64, Malformed> {
        let tag = self.take::<1>()?[0];
        Ok(match tag {
            0x00..=0x7f => i64::from(tag),
            0xe0..=0xff => i64::from(tag as i8),
            0xcc => i64::from(self.take::<1>()?[0]),
            0xcd => i64::from(u16::from_be_bytes(self.take()?)),
            0xce => i64::from(u32::from_be_bytes(self.take()?)),
            0xcf => i64::try_from(u64::from_be_bytes(self.take()?)).map_err(|_| Malformed("a number is too large"))?,
            0xd0 => i64::from(i8::from_be_bytes(self.take()?)),
            0xd1 => i64::from(i16::from_be_bytes(self.take()?)),
            0xd2 => i64::from(i32::from_be_bytes(self.take()?)),
            0xd3 => i64::from_be_bytes(self.take()?),
            _ => return Err(Malformed("a whole number is missing")),
        })
    }

    pub fn uint(&mut self) -> Result<u64, Malformed> {
        u64::try_from(self.int()?).map_err(|_| Malformed("a number is negative"))
    }

    pub fn flag(&mut self) -> Result<bool, Malformed> {
        Ok(self.int()? != 0)
    }

    pub fn array(&mut self) -> Result<usize, Malformed> {
        let tag = self.take::<1>()?[0];
        Ok(match tag {
            0x90..=0x9f => usize::from(tag & 0xf),
            0xdc => usize::from(u16::from_be_bytes(self.take()?)),
            0xdd => u32::from_be_bytes(self.take()?) as usize,
            _ => return Err(Malformed("an array is missing")),
        })
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let tag = self.take::<1>()?[0];
        let len = match tag {
            0xa0..=0xbf => usize::from(tag & 0x1f),
            0xd9 => usize::from(self.take::<1>()?[0]),
            0xda => usize::from(u16::from_be_bytes(self.take()?)),
            0xdb => u32::from_be_bytes(self.take()?) as usize,
            _ => return Err(Malformed("a string is missing")),
        };
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(*bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bytes_come_back() {
        let numbers =
            [0, 1, 127, 128, 255, 256, 65_535, 65_536, 1 << 32, NUMBER_MAX as i64, -1, -33, -70_000, i64::MIN];
        let texts: Vec<Vec<u8>> = [0, 31, 32, 255, 256, 70_000].map(|len| vec![7; len]).to_vec();
        let mut out = Writer::default();
        numbers.iter().for_each(|number| out.int(*number));
        texts.iter().for_each(|text| out.bytes(text));
        out.array(15);
        out.array(16);
        out.array(70_000);
        let mut reader = Reader::new(&out.0);
        for number in numbers {
            assert_eq!(reader.int().unwrap(), number);
        }
        for text in texts {
            assert_eq!(reader.bytes().unwrap(), text);
        }
        assert_eq!([15, 16, 70_000], [(); 3].map(|()| reader.array().unwrap()));
        assert!(reader.int().is_err(), "nothing is left");
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        let mut out = Writer::default();
        out.array(2);
        out.int(1 << 40);
        out.bytes(&[1; 40]);
        for len in 0..out.0.len() {
            let mut reader = Reader::new(&out.0[..len]);
            assert!(reader.array().and_then(|_| reader.int()).and_then(|_| reader.bytes()).is_err());
        }
    }
}
