//! Calls to user.

use super::{Answered, Way, Web};
use crate::Label;
use crate::failure::Failure;
use crate::hop::Trace;
use crate::user::User;

pub struct Users(Web);

impl Users {
    pub(super) fn new(way: Way) -> Self {
        Self(Web::new(way))
    }

    pub async fn find(&self, id: &Label, trace: &Trace) -> Result<Answered<User>, Failure> {
        let missing = format!("there is no user {id}");
        let (user, _) = self.0.read(&format!("/users/{id}"), trace, &missing).await?;
        Ok(user)
    }
}
