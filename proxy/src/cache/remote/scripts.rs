//! What Redis is asked: scripts, each of which runs there as one step.

use std::time::Duration;

use bytes::Bytes;
use redis::Value;

use super::{
    codec::Stamp,
    keys::{self, Digest, OfShelf},
    link::{Failure, Link},
};

const READ: &str = include_str!("read.lua");
const WRITE: &str = include_str!("write.lua");
const FORGET: &str = include_str!("forget.lua");

/// A response whose fetch began longer ago is not written: what has been made void meanwhile is forgotten by then.
pub const LONGEST_FETCH: Duration = Duration::from_secs(100);
/// So long a path remembers that it was made void; longer than any fetch that may still be written.
const REMEMBERED: Duration = Duration::from_secs(120);
/// An epoch that nobody changes is made anew after this, which makes everything under it void: harmless, and what is of no
/// use any more does not stay for ever. No response is kept longer, so none outlives the epoch before the last.
pub const EPOCH: Duration = Duration::from_secs(30 * 24 * 3600);
/// Responses for one path, and the names by which they vary. A path with more is emptied.
const MOST_FIELDS: usize = 32;

/// What is wanted of a path.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Where it is.
    pub keys: &'a OfShelf,
    /// The field with the names by which responses vary.
    pub names: &'a [u8],
    /// A larger response is not read.
    pub most: u64,
}

/// What Redis says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What is in force.
    pub stamp: Stamp,
    /// By which responses vary; empty where they do not.
    pub names: Vec<u8>,
    /// A response.
    pub entry: Option<Bytes>,
    /// What its clock says.
    pub time: Duration,
}

/// A response to be written.
#[derive(Clone, Copy, Debug)]
pub struct Entering<'a> {
    /// Where.
    pub keys: &'a OfShelf,
    /// What was in force when its fetch began.
    pub stamp: &'a Stamp,
    /// Field and value of the names by which it varies.
    pub names: (&'a [u8], &'a [u8]),
    /// Which one, and its bytes.
    pub entry: (&'a Digest, &'a [u8]),
    /// How long it is kept.
    pub lifetime: Duration,
}

impl Look<'_> {
    /// The response of a path whose responses do not vary.
    ///
    /// # Errors
    /// When Redis does not answer as it should.
    pub async fn plain(&self, link: &Link, digest: &Digest) -> Result<Reply, Failure> {
        self.ask(link, digest, 0).await
    }

    /// One of several.
    ///
    /// # Errors
    /// When Redis does not answer as it should.
    pub async fn variant(&self, link: &Link, digest: &Digest) -> Result<Reply, Failure> {
        self.ask(link, digest, 1).await
    }

    async fn ask(&self, link: &Link, digest: &Digest, varies: u8) -> Result<Reply, Failure> {
        let mut command = command(READ, self.keys);
        command.arg(&token()[..]).arg(millis(EPOCH)).arg(self.names);
        command.arg(keys::entry_field(digest)).arg(self.most).arg(varies);
        reply(link.call(&command).await?).ok_or(Failure::Answer)
    }
}

/// Writes a response. Says whether it was taken.
///
/// # Errors
/// When Redis does not answer as it should.
pub async fn write(link: &Link, entering: Entering<'_>) -> Result<bool, Failure> {
    let Entering { keys, stamp, names, entry, lifetime } = entering;
    let mut command = command(WRITE, keys);
    stamp.epochs.iter().chain([&stamp.generation]).for_each(|token| {
        command.arg(&token[..]);
    });
    command.arg(names.0).arg(names.1).arg(keys::entry_field(entry.0)).arg(entry.1);
    command.arg(millis(lifetime)).arg(MOST_FIELDS);
    match link.call(&command).await? {
        Value::Int(taken) => Ok(taken == 1),
        _ => Err(Failure::Answer),
    }
}

/// Forgets everything for a path, by the key of its hash.
///
/// # Errors
/// When Redis does not answer as it should.
pub async fn forget(link: &Link, shelf: &str) -> Result<(), Failure> {
    let mut command = redis::cmd("EVAL");
    command.arg(FORGET).arg(1).arg(shelf).arg(&token()[..]).arg(millis(REMEMBERED));
    link.call(&command).await.map(drop)
}

/// Ends an epoch, by its key: who reads begins another. That works where memory is full, too.
///
/// # Errors
/// When Redis does not answer as it should.
pub async fn end_epoch(link: &Link, epoch: &str) -> Result<(), Failure> {
    let mut command = redis::cmd("DEL");
    command.arg(epoch);
    link.call(&command).await.map(drop)
}

fn command(script: &str, keys: &OfShelf) -> redis::Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(4).arg(&keys.epochs[..]).arg(&keys.shelf);
    command
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Never the same twice.
fn token() -> [u8; 16] {
    rand::random()
}

fn reply(value: Value) -> Option<Reply> {
    let Value::Array(items) = value else { return None };
    let [one, two, three, generation, names, entry, seconds, micros] =
        <[Value; 8]>::try_from(items).ok()?;
    let epochs = [bytes(one)?, bytes(two)?, bytes(three)?];
    let stamp = Stamp { epochs, generation: bytes(generation)? };
    let time = Duration::from_secs(number(seconds)?)
        .checked_add(Duration::from_micros(number(micros)?))?;
    let entry = Some(bytes(entry)?).filter(|entry| !entry.is_empty()).map(Bytes::from);
    Some(Reply { stamp, names: bytes(names)?, entry, time })
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

fn number(value: Value) -> Option<u64> {
    std::str::from_utf8(&bytes(value)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_another_form_are_none() {
        let text = |text: &str| Value::BulkString(text.into());
        let good: Vec<_> = ["a", "b", "c", "", "", "", "12", "34"].map(text).into();
        let read = reply(Value::Array(good.clone())).unwrap();
        assert_eq!((read.time.as_secs(), read.time.subsec_micros()), (12, 34));
        assert_eq!(read.entry, None);
        for (at, wrong) in [
            (0, Value::Nil),
            (0, Value::Int(1)),
            (5, Value::Array(Vec::new())),
            (6, text("x")),
            (6, text("18446744073709551615")),
            (7, text("-1")),
        ] {
            let mut items = good.clone();
            items[at] = wrong;
            // The largest number of seconds is a time, but no more can be added to it.
            if at == 6 {
                items[7] = text("18446744073709551615");
            }
            assert_eq!(reply(Value::Array(items)), None, "{at}");
        }
        assert_eq!(reply(Value::Array(good[..7].to_vec())), None);
        assert_eq!(reply(text("OK")), None);
    }
}
