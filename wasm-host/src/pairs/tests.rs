use proptest::prelude::*;

use super::*;

fn lists() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..24);
    prop::collection::vec((bytes(), bytes()), 0..20)
}

fn encoded(list: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    encode(list.iter().map(|(key, value)| (&key[..], &value[..])))
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(list in lists()) {
        let bytes = encoded(&list);
        let read: Vec<_> =
            Pairs::parse(&bytes).unwrap().iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        prop_assert_eq!(read, list);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(pairs) = Pairs::parse(&bytes) {
            let again = encode(pairs.iter());
            prop_assert!(again == bytes || pairs.is_empty());
        }
    }

    #[test]
    fn one_changed_byte_is_read_or_refused(
        list in lists(), at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut bytes = encoded(&list);
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(pairs) = Pairs::parse(&bytes) {
            prop_assert_eq!(pairs.iter().count(), pairs.len());
        }
    }

    #[test]
    fn a_shortened_list_is_refused(list in lists(), cut in 1_usize..40) {
        let bytes = encoded(&list);
        let short = &bytes[..bytes.len().saturating_sub(cut)];
        prop_assert!(short.is_empty() || Pairs::parse(short).is_err());
    }
}

#[test]
fn refusals_have_their_reason() {
    let cases: [(&[u8], PairsError); 6] = [
        (&[1, 0], PairsError::Truncated),
        (&[1, 0, 0, 0, 1, 0, 0, 0], PairsError::Truncated),
        (&[1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0], PairsError::Truncated),
        (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], PairsError::Trailing),
        (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], PairsError::NotTerminated),
        (&[1, 4, 0, 0, 0, 0, 0, 0], PairsError::TooLarge),
    ];
    for (bytes, error) in cases {
        assert_eq!(Pairs::parse(bytes).err(), Some(error), "{bytes:?}");
    }
    assert_eq!(Pairs::parse(&vec![0; MAX_BYTES + 1]).err(), Some(PairsError::TooLarge));
}

#[test]
fn an_empty_list_is_no_bytes_or_one_zero() {
    for bytes in [&[][..], &[0], &[0, 0, 0, 0]] {
        assert!(Pairs::parse(bytes).unwrap().is_empty());
    }
    assert!(encode([]).is_empty());
}

#[test]
fn the_first_value_is_found_without_case() {
    let bytes = encode([(&b"a"[..], &b"1"[..]), (b"Key", b"2"), (b"key", b"3")]);
    assert_eq!(Pairs::parse(&bytes).unwrap().first(b"KEY"), Some(&b"2"[..]));
    assert_eq!(Pairs::parse(&bytes).unwrap().first(b"none"), None);
}
