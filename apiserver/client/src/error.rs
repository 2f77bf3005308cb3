use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

pub type Result<T> = std::result::Result<T, Error>;

/// Why a request gave no object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with a failure.
    #[error("{}", status_text(.0))]
    Api(Box<Status>),
    /// No answer came, or it broke off.
    #[error("{operation}: no answer from the API server")]
    Transport { operation: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The answer is not what was asked for.
    #[error("{operation}: the answer cannot be decoded")]
    Decode { operation: String, source: serde_json::Error },
    /// What was to be sent cannot be built: an address, a certificate, a name.
    #[error("{operation}")]
    Invalid { operation: String, source: Box<dyn std::error::Error + Send + Sync> },
}

impl Error {
    pub fn status(&self) -> Option<&Status> {
        match self {
            Error::Api(status) => Some(status),
            Error::Transport { .. } | Error::Decode { .. } | Error::Invalid { .. } => None,
        }
    }

    fn has(&self, code: i32, reason: &str) -> bool {
        self.status().is_some_and(|s| s.code == Some(code) && s.reason.as_deref() == Some(reason))
    }

    pub fn is_not_found(&self) -> bool {
        self.has(404, "NotFound")
    }

    /// Somebody else wrote the object first: read it again and decide again.
    pub fn is_conflict(&self) -> bool {
        self.has(409, "Conflict")
    }

    pub fn is_already_exists(&self) -> bool {
        self.has(409, "AlreadyExists")
    }

    /// The revision asked for is compacted: list again.
    pub fn is_expired(&self) -> bool {
        self.status().is_some_and(|s| s.code == Some(410))
    }

    /// The revision asked for does not exist. One that was seen before is gone only when the store was put back to an
    /// earlier state: list again.
    pub fn is_ahead(&self) -> bool {
        let causes = self.status().and_then(|s| s.details.as_ref()?.causes.as_ref());
        causes.into_iter().flatten().any(|c| c.reason.as_deref() == Some("ResourceVersionTooLarge"))
    }

    /// Worth trying again with the same content: the server was away or overloaded.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Transport { .. } => true,
            Error::Api(status) => status.code.is_some_and(|c| c == 429 || c >= 500),
            Error::Decode { .. } | Error::Invalid { .. } => false,
        }
    }
}

fn status_text(status: &Status) -> String {
    match (&status.message, &status.reason, status.code) {
        (Some(message), _, _) if !message.is_empty() => message.clone(),
        (_, Some(reason), _) => reason.clone(),
        (_, None, Some(code)) => format!("the API server answered {code}"),
        (_, None, None) => "the API server refused without a reason".to_owned(),
    }
}
