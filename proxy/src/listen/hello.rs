//! Whose TLS a connection speaks that begins with a ClientHello: the mesh's, or the application's own. Pure.

use rustls::server::Acceptor;

/// Our protocols in ALPN (docs/decisions/0004), also those of versions to come.
const OURS: &[u8] = b"leno-";
/// Bytes that most hellos have less of.
pub const USUAL: usize = 2 * 1024;
/// Bytes within which a ClientHello is looked for. Ours have less than 3 KiB, the largest that are seen in the wild
/// (post-quantum key shares, long tickets) less than 8 KiB.
pub const MOST: usize = 16 * 1024;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A hop of the mesh: it names one of our protocols.
    Ours,
    /// The application's own, or no ClientHello at all.
    Foreign,
    /// Not complete yet.
    NeedMore,
}

/// Tells what begins with `bytes`.
pub fn read(bytes: &[u8]) -> Hello {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    loop {
        // It takes at most a record at a time.
        if !rest.is_empty() && acceptor.read_tls(&mut rest).is_err() {
            return Hello::Foreign;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let ours = match accepted.client_hello().alpn() {
                    Some(mut names) => names.any(|name| name.starts_with(OURS)),
                    None => false,
                };
                return if ours { Hello::Ours } else { Hello::Foreign };
            }
            Ok(None) if rest.is_empty() && bytes.len() < MOST => return Hello::NeedMore,
            Ok(None) if rest.is_empty() => return Hello::Foreign,
            Ok(None) => {}
            Err(_) => return Hello::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

    use super::*;

    fn hello(names: &[&str]) -> Vec<u8> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let mut config = builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = "80.orders.shop.leno".try_into().unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake message in records of `size` bytes.
    fn split(bytes: &[u8], size: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            let length = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&bytes[..3], &length, piece].concat()
        };
        bytes[5..].chunks(size).flat_map(record).collect()
    }

    #[test]
    fn tells_whose_it_is() {
        for (names, expected) in [
            (&["leno-http/1.1"][..], Hello::Ours),
            (&["leno-h2"], Hello::Ours),
            (&["h2", "leno-tcp"], Hello::Ours),
            (&["leno-something-new"], Hello::Ours),
            (&["h2", "http/1.1"], Hello::Foreign),
            (&[], Hello::Foreign),
        ] {
            let bytes = hello(names);
            assert_eq!(read(&bytes), expected, "{names:?}");
            assert_eq!(read(&split(&bytes, 40)), expected, "{names:?} in pieces");
        }
        assert_eq!(read(b"\x16\x03\x01\x00\x05hello"), Hello::Foreign);
        assert_eq!(read(b"\x16\x03\x01"), Hello::NeedMore);
        // A hello that says it goes on for ever is not waited for.
        let mut endless = b"\x16\x03\x01\x3f\xff\x01\x00\xff\xff".to_vec();
        endless.resize(MOST, 0);
        assert_eq!(read(&endless), Hello::Foreign);
    }

    #[test]
    fn every_beginning_of_a_hello_needs_more() {
        let bytes = hello(&["leno-h2"]);
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), Hello::NeedMore, "{end} of {}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn anything_gets_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            read(&bytes);
            read(&[&b"\x16\x03\x01"[..], &bytes].concat());
        }
    }
}
