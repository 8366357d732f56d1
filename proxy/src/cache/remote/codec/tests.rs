use proptest::prelude::*;

use super::*;

const WHICH: Digest = [7; 32];
const MOST: u64 = 4096;

fn fields(pairs: &[(String, Vec<u8>)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        fields.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    fields
}

fn entry() -> Entry {
    let headers = [("cache-control", "public, max-age=60"), ("x-a", "1"), ("x-a", "2")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.into()));
    Entry {
        written: Duration::from_millis(1_700_000_000_123),
        age: Duration::from_secs(3),
        stamp: Stamp { epochs: [vec![1; 16], vec![2; 16], Vec::new()], generation: vec![9; 8] },
        status: StatusCode::OK,
        headers: fields(&headers),
        trailers: Some(fields(&[("x-checksum".to_owned(), b"abc".to_vec())])),
        body: Bytes::from_static(b"a body"),
    }
}

/// With a checksum that is right, whatever the rest is.
fn sealed(payload: &[u8]) -> Bytes {
    let checksum = checksum(&WHICH, payload);
    [&MAGIC[..], &[VERSION], &checksum, payload].concat().into()
}

fn pairs() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let value = prop::collection::vec(prop_oneof![32..=126_u8, 128..=255_u8], 0..20);
    prop::collection::vec(("x-[a-z]{1,8}", value), 0..6)
}

prop_compose! {
    fn entries()(
        times in any::<(u32, u32)>(),
        tokens in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=16), 4),
        status in 200..=599_u16,
        headers in pairs(),
        trailers in prop::option::of(pairs()),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) -> Entry {
        let [one, two, three, generation] = <[Vec<u8>; 4]>::try_from(tokens).unwrap();
        Entry {
            written: Duration::from_millis(times.0.into()),
            age: Duration::from_millis(times.1.into()),
            stamp: Stamp { epochs: [one, two, three], generation },
            status: StatusCode::from_u16(status).unwrap(),
            headers: fields(&headers),
            trailers: trailers.map(|trailers| fields(&trailers)),
            body: body.into(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(entry in entries()) {
        let bytes = encode(&entry, &WHICH).unwrap();
        prop_assert_eq!(decode(bytes.into(), &WHICH, MOST), Ok(entry));
    }

    #[test]
    fn garbage_is_not_ours(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(bytes.into(), &WHICH, MOST).is_err());
    }

    /// What has the right checksum may still be anything: it is read or refused, and never read as something else.
    #[test]
    fn a_payload_of_anybody_is_read_as_it_is_or_not_at_all(
        payload in prop::collection::vec(any::<u8>(), 0..400),
        entry in entries(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut changed = encode(&entry, &WHICH).unwrap()[PREFIX_BYTES..].to_vec();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        for payload in [payload, changed] {
            let bytes = sealed(&payload);
            if let Ok(entry) = decode(bytes, &WHICH, MOST) {
                let again = encode(&entry, &WHICH).unwrap();
                prop_assert_eq!(decode(again.into(), &WHICH, MOST), Ok(entry));
            }
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = encode(&entry(), &WHICH).unwrap();
    assert_eq!(decode(bytes.clone().into(), &WHICH, MOST), Ok(entry()));
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            assert!(decode(changed.into(), &WHICH, MOST).is_err(), "byte {at}, bit {bit}");
        }
        assert!(decode(bytes[..at].to_vec().into(), &WHICH, MOST).is_err(), "cut at {at}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert_eq!(decode(longer.into(), &WHICH, MOST), Err(Fault::Checksum));
    assert_eq!(decode(bytes.into(), &[8; 32], MOST), Err(Fault::Checksum));
}

#[test]
fn every_length_that_lies_is_noticed() {
    let payload = encode(&entry(), &WHICH).unwrap()[PREFIX_BYTES..].to_vec();
    assert!(decode(sealed(&payload), &WHICH, MOST).is_ok());
    let body_length = payload.len() - entry().body.len() - 8;
    let fields = 16 + 17 + 17 + 1 + 9 + 2;
    for (at, bytes) in [
        (body_length, &u64::MAX.to_be_bytes()[..]),
        (body_length, &7_u64.to_be_bytes()),
        (body_length, &5_u64.to_be_bytes()),
        (fields, &u32::MAX.to_be_bytes()),
        (fields, &1025_u32.to_be_bytes()),
        (fields, &2_u32.to_be_bytes()),
        (fields + 4, &u32::MAX.to_be_bytes()),
        (fields + 4, &0_u32.to_be_bytes()),
        (16, &[17]),
        (16, &[255]),
    ] {
        let mut lying = payload.clone();
        lying[at..at + bytes.len()].copy_from_slice(bytes);
        let read = decode(sealed(&lying), &WHICH, MOST);
        assert_eq!(read, Err(Fault::Malformed), "{bytes:?} at {at}");
    }
}

#[test]
fn what_is_of_another_kind_or_size_is_refused() {
    let mut newer = encode(&entry(), &WHICH).unwrap();
    newer[4] = VERSION + 1;
    assert_eq!(decode(newer.into(), &WHICH, MOST), Err(Fault::Version));

    let large = Entry { body: vec![b'x'; 4097].into(), ..entry() };
    let bytes = Bytes::from(encode(&large, &WHICH).unwrap());
    assert_eq!(decode(bytes.clone(), &WHICH, MOST), Err(Fault::TooLarge));
    assert!(decode(bytes, &WHICH, 4097).is_ok());
    let huge = vec![b'x'; MOST_HEAD_BYTES as usize + 5000];
    let bytes = encode(&Entry { body: huge.into(), ..entry() }, &WHICH).unwrap();
    assert_eq!(decode(bytes.into(), &WHICH, MOST), Err(Fault::TooLarge));

    for (name, value) in [("content-length", "5"), ("content-length", "x")] {
        let mut wrong = entry();
        wrong.headers.append(name, value.parse().unwrap());
        let bytes = encode(&wrong, &WHICH).unwrap();
        assert_eq!(decode(bytes.into(), &WHICH, MOST), Err(Fault::Malformed));
    }
    let early = Entry { status: StatusCode::CONTINUE, ..entry() };
    let bytes = encode(&early, &WHICH).unwrap();
    assert_eq!(decode(bytes.into(), &WHICH, MOST), Err(Fault::Malformed));
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let mut many = entry();
    for at in 0..MOST_FIELDS {
        many.headers.append(HeaderName::try_from(format!("x-{at}")).unwrap(), "".parse().unwrap());
    }
    assert_eq!(encode(&many, &WHICH), None);
    let mut long = entry();
    let value = "x".repeat(MOST_HEAD_BYTES as usize);
    long.headers.append("x-long", value.parse().unwrap());
    assert_eq!(encode(&long, &WHICH), None);
}
