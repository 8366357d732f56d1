//! The module among the files of a container image's layer: a tar archive (POSIX.1-2017, `pax`: ustar headers), mostly
//! compressed with gzip (RFC 1952). Nothing of it is written anywhere, so that names in it can lead nowhere. Pure.

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;

use crate::config::prepare::MAX_MODULE_BYTES;

/// What the file is called that has the module, as the Wasm image specification has it; in whatever folder.
pub(super) const FILE: &str = "plugin.wasm";
/// Of a layer without its compression: a module of the largest size and as much again of other files. A few KiB of
/// gzip can stand for many MiB, which take the side thread's time to look at.
const MAX_ARCHIVE_BYTES: u64 = 2 * MAX_MODULE_BYTES as u64;
/// Headers and contents begin at multiples of this.
const BLOCK: usize = 512;
/// Of what extends a header: the longest path that Linux knows has 4 KiB.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Finds the module.
///
/// # Errors
/// For people: why there is none.
pub(super) fn module(layer: &[u8]) -> Result<Vec<u8>, String> {
    within(MAX_ARCHIVE_BYTES, layer)
}

fn within(most: u64, layer: &[u8]) -> Result<Vec<u8>, String> {
    let found = if layer.starts_with(&GZIP) {
        // Some tools write many gzip members, one after the other.
        find(&mut MultiGzDecoder::new(layer).take(most))
    } else {
        find(&mut layer.take(most))
    };
    let wrong = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            format!("the layer breaks off, or has more than {most} bytes")
        }
        _ => format!("the layer is no tar archive: {error}"),
    };
    found.map_err(wrong)?.ok_or_else(|| {
        format!("it is a container image whose last layer has no file called {FILE}")
    })
}

fn find(archive: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut renamed = None;
    while let Some(header) = Header::read(archive)? {
        match header.kind {
            b'x' => renamed = pax_path(&extension(archive, &header)?).or(renamed),
            b'L' => renamed = Some(until_zero(&extension(archive, &header)?).to_vec()),
            kind => {
                let path = renamed.take().unwrap_or(header.path);
                let is_file = matches!(kind, b'0' | b'\0' | b'7');
                if is_file && path.rsplit(|byte| *byte == b'/').next() == Some(FILE.as_bytes()) {
                    return content(archive, header.size).map(Some);
                }
                skip(archive, padded(header.size)?)?;
            }
        }
    }
    Ok(None)
}

struct Header {
    path: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    /// `None` where the archive ends: at a block of zeros, or at the end of all.
    fn read(archive: &mut impl Read) -> io::Result<Option<Self>> {
        let mut block = Vec::with_capacity(BLOCK);
        archive.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let block: [u8; BLOCK] =
            block.try_into().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if number(&block[148..156]) != Some(checksum(&block)) {
            return Err(invalid("a header does not have the sum that it says"));
        }
        let size = number(&block[124..136]).ok_or_else(|| invalid("a size is no number"))?;
        let mut path = Vec::new();
        // The folder's part of a long path.
        if block[257..].starts_with(b"ustar\0") && block[345] != 0 {
            path.extend_from_slice(until_zero(&block[345..500]));
            path.push(b'/');
        }
        path.extend_from_slice(until_zero(&block[..100]));
        Ok(Some(Self { path, size, kind: block[156] }))
    }
}

/// Of all bytes of the header, its own counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let counted =
        |(at, byte): (usize, &u8)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(counted).sum()
}

/// In octal digits between spaces and zeros. What needs another form is larger than any module.
fn number(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|character| character == ' ' || character == '\0');
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| invalid("a size is too large"))
}

fn extension(archive: &mut impl Read, header: &Header) -> io::Result<Vec<u8>> {
    if header.size > MAX_EXTENSION_BYTES {
        return Err(invalid("a header is extended by more than 64 KiB"));
    }
    let bytes = exactly(archive, header.size)?;
    skip(archive, padded(header.size)? - header.size)?;
    Ok(bytes)
}

/// What a pax header says of the path: lines of `<length> <key>=<value>\n`.
fn pax_path(mut records: &[u8]) -> Option<Vec<u8>> {
    let mut path = None;
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.to_vec());
        }
        records = &records[length..];
    }
    path
}

fn content(archive: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_MODULE_BYTES as u64 {
        let allowed =
            format!("{FILE} has {size} bytes, more than the {MAX_MODULE_BYTES} that are allowed");
        return Err(invalid(&allowed));
    }
    exactly(archive, size)
}

/// Grows with what comes, not with what a header says.
fn exactly(archive: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    archive.by_ref().take(size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn skip(archive: &mut impl Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut archive.by_ref().take(bytes), &mut io::sink())?;
    if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
pub(super) mod tests;
