use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::*;

/// An entry as the tools write it: header and content, in whole blocks.
fn entry(path: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    sized(path, kind, content, content.len() as u64)
}

fn sized(path: &str, kind: u8, content: &[u8], size: u64) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    summed(&mut block);
    let mut bytes = block.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn summed(block: &mut [u8; BLOCK]) {
    let sum = format!("{:06o}\0 ", checksum(block));
    block[148..156].copy_from_slice(sum.as_bytes());
}

pub(in crate::config::prepare::oci) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        entries.iter().flat_map(|(path, content)| entry(path, b'0', content)).collect();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

pub(in crate::config::prepare::oci) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn the_module_is_found_in_whatever_folder() {
    let other: (&str, &[u8]) = ("etc/passwd", &[7; 700]);
    for path in ["plugin.wasm", "./plugin.wasm", "/plugin.wasm", "../../app/plugin.wasm"] {
        let archive = archive(&[other, (path, b"\0asm")]);
        assert_eq!(module(&archive).unwrap(), b"\0asm", "{path}");
        assert_eq!(module(&gzip(&archive)).unwrap(), b"\0asm", "{path}");
    }
    let whole = archive(&[other, ("plugin.wasm", b"\0asm")]);
    let (first, second) = whole.split_at(900);
    let members = [gzip(first), gzip(second)].concat();
    assert_eq!(module(&members).unwrap(), b"\0asm", "members of gzip are one stream");
    let without_end = whole[..whole.len() - 2 * BLOCK].to_vec();
    assert_eq!(module(&without_end).unwrap(), b"\0asm");
}

#[test]
fn a_path_may_be_in_a_header_of_its_own() {
    let long = format!("{}/plugin.wasm\0", "folder".repeat(50));
    let mut prefixed = entry("plugin.wasm", b'0', b"\0asm");
    let mut block: [u8; BLOCK] = prefixed[..BLOCK].try_into().unwrap();
    block[345..351].copy_from_slice(b"folder");
    summed(&mut block);
    prefixed[..BLOCK].copy_from_slice(&block);
    for bytes in [
        [entry("PaxHeaders.0", b'x', b"20 path=plugin.wasm\n"), entry("p", b'0', b"\0asm")]
            .concat(),
        [
            entry("PaxHeaders.0", b'x', b"19 mtime=1.2345678\n20 path=plugin.wasm\n"),
            entry("p", b'0', b"\0asm"),
        ]
        .concat(),
        [entry("PaxHeaders.0", b'x', b"11 mtime=1\n"), entry("plugin.wasm", b'0', b"\0asm")]
            .concat(),
        [entry("././@LongLink", b'L', long.as_bytes()), entry("p", b'0', b"\0asm")].concat(),
        prefixed,
    ] {
        assert_eq!(module(&bytes).unwrap(), b"\0asm", "{}", String::from_utf8_lossy(&bytes));
    }
    // A name holds for one entry, and a link of that name is no module.
    let bytes = [
        entry("PaxHeaders.0", b'x', b"20 path=plugin.wasm\n"),
        entry("p", b'2', b""),
        entry("p", b'0', b"\0asm"),
    ];
    assert!(module(&bytes.concat()).unwrap_err().contains("no file called plugin.wasm"));
}

#[test]
fn says_what_is_wrong() {
    let good = archive(&[("a", b"1"), ("plugin.wasm", b"\0asm")]);
    let mut sum = good.clone();
    sum[0] ^= 1;
    let mut damaged = gzip(&good);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let extended = entry("x", b'x', &vec![b'1'; 65 << 10]);
    for (layer, reason) in [
        (archive(&[("plugin.wat", b"")]), "no file called plugin.wasm"),
        (Vec::new(), "no file called plugin.wasm"),
        (b"hello".to_vec(), "breaks off"),
        (good[..BLOCK + 1].to_vec(), "breaks off"),
        (gzip(&good[..3 * BLOCK + 2]), "breaks off"),
        (gzip(&good)[..40].to_vec(), "breaks off"),
        (damaged, "no tar archive"),
        (vec![b'x'; BLOCK], "does not have the sum"),
        (sum, "does not have the sum"),
        (extended, "more than 64 KiB"),
        (sized("plugin.wasm", b'0', b"", 1 << 30), "1073741824 bytes, more than the"),
        (sized("other", b'0', b"", 1 << 30), "breaks off"),
    ] {
        let error = module(&layer).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_bomb_is_not_waited_for() {
    let zeros = vec![0; 1 << 20];
    let layer = gzip(&archive(&[("one", &zeros), ("two", &zeros), ("plugin.wasm", b"\0asm")]));
    assert!(layer.len() < 32 << 10, "{}", layer.len());
    let error = within(2 << 20, &layer).unwrap_err();
    assert!(error.contains("more than 2097152 bytes"), "{error}");
    assert_eq!(within(3 << 20, &layer).unwrap(), b"\0asm");
}

proptest! {
    #[test]
    fn never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        at in 0_usize..4000,
        kind in proptest::sample::select(b"0xL25g\0".to_vec()),
    ) {
        let whole = [
            entry("PaxHeaders.0", kind, b"20 path=plugin.wasm\n"),
            archive(&[("a", b"1"), ("plugin.wasm", b"\0asm")]),
        ];
        let mut damaged = whole.concat();
        let at = at % damaged.len();
        let end = (at + bytes.len()).min(damaged.len());
        damaged[at..end].copy_from_slice(&bytes[..end - at]);
        // As if whoever damaged it meant it.
        for header in 0..damaged.len() / BLOCK {
            let range = header * BLOCK..(header + 1) * BLOCK;
            let mut block: [u8; BLOCK] = damaged[range.clone()].try_into().unwrap();
            if block[257..].starts_with(b"ustar") {
                summed(&mut block);
                damaged[range].copy_from_slice(&block);
            }
        }
        let _ = module(&damaged);
        let _ = module(&gzip(&damaged));
        let _ = pax_path(&bytes);
    }
}
