//! Modules from registries: the pulling part of the OCI distribution specification, with anonymous tokens.

mod archive;
mod challenge;
mod manifest;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Uri, header};
use leno_api::model::wasm_plugin::OciReference;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::task::spawn_blocking;

use self::{
    challenge::Challenge,
    manifest::{Found, Layer},
};
use super::{
    MAX_MODULE_BYTES, MODULE_TIME_LIMIT,
    store::{Digest, Store, digest_of, hex},
};
use crate::http::fetch::{FetchError, Fetcher, Wanted};

/// The specification asks registries to take 4 MiB; the manifest of one module has less than 1 KiB.
const MAX_MANIFEST_BYTES: usize = 1 << 20;
/// Tokens are some KiB.
const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// For a manifest or a token.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Registries send to a store of blobs, which may send to a mirror.
const MAX_REDIRECTS: usize = 5;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("{what}: {error}")]
    Fetch { what: &'static str, error: FetchError },
    #[error("{what}: the registry answered with {status}{hint}")]
    Status { what: &'static str, status: StatusCode, hint: &'static str },
    #[error("the registry wants to be asked in a way that is not supported: {0}")]
    Challenge(String),
    #[error("{0}")]
    Image(String),
    #[error("the {what} is not what its digest says: it has {found}")]
    Digest { what: &'static str, found: String },
}

/// The module of an image: what `store` has of it is not asked for.
pub(super) async fn pull(
    fetcher: &Fetcher,
    image: &OciReference,
    store: &Store,
) -> Result<Bytes, PullError> {
    let mut registry = Registry { fetcher, image, token: None };
    let layer = registry.layer().await?;
    if let Some(module) = known(store, &layer).await {
        return Ok(module);
    }
    let bytes = registry.blob(&layer).await?;
    check("layer", &bytes, &layer.digest)?;
    if layer.is_archive { unpack(bytes, &layer, store).await } else { Ok(bytes) }
}

async fn known(store: &Store, layer: &Layer) -> Option<Bytes> {
    let (store, digest, is_archive) = (store.clone(), layer.digest, layer.is_archive);
    let looking = spawn_blocking(move || {
        let digest = if is_archive { store.digest_at(&unpacked_name(&digest))? } else { digest };
        store.module(&digest)
    });
    looking.await.ok().flatten()
}

/// The module of an archive. Which one it has is kept, so that the archive need not come again.
async fn unpack(archive: Bytes, layer: &Layer, store: &Store) -> Result<Bytes, PullError> {
    let (store, name) = (store.clone(), unpacked_name(&layer.digest));
    let unpacking = spawn_blocking(move || {
        let module = Bytes::from(archive::module(&archive)?);
        store.keep(&name, &digest_of(&module), &module);
        Ok(module)
    });
    let unpacked = unpacking.await.unwrap_or_else(|error| Err(error.to_string()));
    unpacked.map_err(PullError::Image)
}

fn unpacked_name(layer: &Digest) -> String {
    format!("the module in the layer sha256:{}", hex(layer))
}

fn check(what: &'static str, bytes: &[u8], digest: &Digest) -> Result<(), PullError> {
    let found = digest_of(bytes);
    if found == *digest {
        return Ok(());
    }
    Err(PullError::Digest { what, found: format!("sha256:{}", hex(&found)) })
}

struct Registry<'a> {
    fetcher: &'a Fetcher,
    image: &'a OciReference,
    token: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry<'_> {
    async fn layer(&mut self) -> Result<Layer, PullError> {
        let image = self.image;
        let tag = image.tag.as_deref().unwrap_or("latest");
        match self.manifest(image.digest.as_ref(), tag).await? {
            Found::Layer(layer) => Ok(layer),
            Found::Image(digest) => match self.manifest(Some(&digest), tag).await? {
                Found::Layer(layer) => Ok(layer),
                Found::Image(_) => Err(PullError::Image("it is an index of indexes".to_owned())),
            },
        }
    }

    async fn manifest(&mut self, digest: Option<&Digest>, tag: &str) -> Result<Found, PullError> {
        let reference =
            digest.map_or_else(|| tag.to_owned(), |digest| format!("sha256:{}", hex(digest)));
        let wanted = Wanted {
            accept: manifest::ACCEPT,
            authorization: None,
            max_bytes: MAX_MANIFEST_BYTES,
            time_limit: TIME_LIMIT,
            redirects: MAX_REDIRECTS,
        };
        let bytes = self.get("manifest", &format!("manifests/{reference}"), &wanted).await?;
        if let Some(digest) = digest {
            check("manifest", &bytes, digest)?;
        }
        manifest::read(&bytes).map_err(PullError::Image)
    }

    async fn blob(&mut self, layer: &Layer) -> Result<Bytes, PullError> {
        let wanted = Wanted {
            accept: "*/*",
            authorization: None,
            max_bytes: MAX_MODULE_BYTES,
            time_limit: MODULE_TIME_LIMIT,
            redirects: MAX_REDIRECTS,
        };
        let path = format!("blobs/sha256:{}", hex(&layer.digest));
        self.get("layer", &path, &wanted).await
    }

    async fn get(
        &mut self,
        what: &'static str,
        path: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Bytes, PullError> {
        let url = self.url(path)?;
        let mut answer = self.ask(what, &url, wanted).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.authorize(&answer).await?;
            answer = self.ask(what, &url, wanted).await?;
        }
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body()),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                let hint = "; images must be readable without credentials";
                Err(PullError::Status { what, status, hint })
            }
            status => Err(PullError::Status { what, status, hint: "" }),
        }
    }

    async fn ask(
        &self,
        what: &'static str,
        url: &Uri,
        wanted: &Wanted<'_>,
    ) -> Result<Response<Bytes>, PullError> {
        let wanted = Wanted { authorization: self.token.as_ref(), ..*wanted };
        self.fetcher.ask(url, &wanted).await.map_err(|error| PullError::Fetch { what, error })
    }

    fn url(&self, path: &str) -> Result<Uri, PullError> {
        let OciReference { registry, repository, .. } = self.image;
        // The registry behind this name has another one.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let url = format!("{}://{host}/v2/{repository}/{path}", scheme(host));
        url.parse().map_err(|_| PullError::Image(format!("{url} is not a URL")))
    }

    /// Gets the token that the registry asked for; nobody's.
    async fn authorize(&mut self, refusal: &Response<Bytes>) -> Result<(), PullError> {
        let challenges = refusal.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(Challenge::parse)
            .ok_or_else(|| PullError::Challenge("no Bearer in WWW-Authenticate".to_owned()))?;
        let url = self.token_url(&challenge)?;
        let wanted = Wanted {
            accept: "application/json",
            authorization: None,
            max_bytes: MAX_TOKEN_BYTES,
            time_limit: TIME_LIMIT,
            redirects: MAX_REDIRECTS,
        };
        let what = "token";
        let answer = self.fetcher.ask(&url, &wanted).await;
        let answer = answer.map_err(|error| PullError::Fetch { what, error })?;
        if answer.status() != StatusCode::OK {
            return Err(PullError::Status { what, status: answer.status(), hint: "" });
        }
        let none = || PullError::Challenge("what it gives out is no token".to_owned());
        let token: Token = serde_json::from_slice(answer.body()).map_err(|_| none())?;
        let token = token.token.or(token.access_token).ok_or_else(none)?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| none())?;
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(())
    }

    fn token_url(&self, challenge: &Challenge) -> Result<Uri, PullError> {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let pull = format!("repository:{}:pull", self.image.repository);
        let scope = encoded(challenge.scope.as_deref().unwrap_or(&pull));
        let separator = if challenge.realm.contains('?') { '&' } else { '?' };
        let mut url = format!("{}{separator}scope={scope}", challenge.realm);
        if let Some(service) = &challenge.service {
            url += &format!("&service={}", encoded(service));
        }
        let wrong = || PullError::Challenge(format!("{:?} is not a URL", challenge.realm));
        let parsed: Uri = url.parse().map_err(|_| wrong())?;
        // A registry on another machine may not make us ask in the clear.
        let plain = parsed.scheme_str() == Some("http");
        if plain && scheme(&self.image.registry) == "https" {
            return Err(PullError::Challenge("its tokens are given out over http".to_owned()));
        }
        Ok(parsed)
    }
}

/// Registries on this machine have no certificate, as everywhere.
fn scheme(registry: &str) -> &'static str {
    let host = registry.parse::<http::uri::Authority>();
    let host = host.as_ref().map(|authority| authority.host()).unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let local = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
    if local { "http" } else { "https" }
}

#[cfg(test)]
mod tests;
