//! Sources of identities, with real files and sockets.
