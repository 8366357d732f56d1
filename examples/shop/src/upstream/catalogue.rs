//! Calls to the catalogue of product. They are plain GET: the sidecar may have the answer.

use super::{Answered, Way, Web};
use crate::Label;
use crate::catalogue::Article;
use crate::failure::Failure;
use crate::hop::Trace;
use http::HeaderMap;

pub struct Catalogue(Web);

impl Catalogue {
    pub(super) fn new(way: Way) -> Self {
        Self(Web::new(way))
    }

    /// Everything there is, and the headers with which it came.
    pub async fn list(
        &self,
        trace: &Trace,
    ) -> Result<(Answered<Vec<Article>>, HeaderMap), Failure> {
        self.0.read("/products", trace, "there is no catalogue").await
    }

    pub async fn find(&self, id: &Label, trace: &Trace) -> Result<Answered<Article>, Failure> {
        let missing = format!("there is no product {:?}", id.as_str());
        let (article, _) = self.0.read(&format!("/products/{id}"), trace, &missing).await?;
        Ok(article)
    }
}
