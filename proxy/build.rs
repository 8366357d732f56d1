//! Compiles the `.proto` of the certificate authority, of quotas and of caches (the client's half) with protox, so that nobody needs `protoc`.
//! Has the program linked so that it touches as little memory as possible.

use std::{env, process::Command};

/// The first glibc that reads packed relocations.
const PACKED_SINCE: (u32, u32) = (2, 36);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../api/proto");
    let descriptors =
        protox::compile(["ca.proto", "quota.proto", "cache.proto"], ["../api/proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=layout.ld");
    if is_shipped() {
        // Of 26 MiB of code 3 are run, which the kernel maps by 64 KiB: spread over all of it they keep 14 MiB resident.
        println!("cargo::rustc-link-arg-bins=-T{}/layout.ld", env::var("CARGO_MANIFEST_DIR")?);
        // What the loader has to relocate is 1.1 MiB as a table, all of which it reads, and 20 KiB packed.
        if glibc().is_some_and(|version| version >= PACKED_SINCE) {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
    Ok(())
}

/// Whether this is a build for use, by the linker that comes with the compiler: others may not know what it is told.
fn is_shipped() -> bool {
    let is = |name, wanted| env::var(name).is_ok_and(|value| value == wanted);
    let own_linker = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"))
        || env::var_os("RUSTC_LINKER").is_some();
    is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") && !own_linker
}

/// Of what version the C library is that the program will run with, as far as is known: that of this machine. `None`
/// where the program is for other machines.
fn glibc() -> Option<(u32, u32)> {
    if env::var("TARGET").ok()? != env::var("HOST").ok()? {
        return None;
    }
    let answer = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let answer = String::from_utf8(answer.stdout).ok()?;
    let (major, minor) = answer.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
