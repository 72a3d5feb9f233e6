//! [`Access`]: who may ask, where the operator says so: a key, and web pages of other origins.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::error::ApiError;

#[derive(Debug)]
pub(crate) struct Access {
    key: Option<Key>,
    /// Web pages that may ask, by their origin. None by default: a browser then keeps answers from pages that are not the server's own.
    origins: Vec<String>,
}

/// A secret, which nobody prints.
struct Key(String);

impl Access {
    pub(crate) fn new(key: Option<String>, origins: Vec<String>) -> Self {
        Self { key: key.map(Key), origins }
    }

    /// Whether the headers have the key, where the route needs it: the page and the health are for all.
    pub(crate) fn check(&self, route: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.key else { return Ok(()) };
        if ["/", "/health"].contains(&route) {
            return Ok(());
        }
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let message = match given.map(|given| given.strip_prefix(b"Bearer ").unwrap_or(given)) {
            Some(given) if key.is(given) => return Ok(()),
            Some(_) => "the API key is not this server's",
            None => "there is no API key: send the header `Authorization: Bearer KEY`",
        };
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
        Err(error.with_header("www-authenticate", "Bearer"))
    }

    /// The origin of a web page that may ask.
    pub(crate) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.origins.iter().any(|allowed| allowed == "*" || *origin == **allowed).then(|| origin.clone())
    }

    /// Tells the browser that the page may read the response.
    pub(crate) fn allow(&self, origin: HeaderValue, headers: &mut HeaderMap) {
        let rest = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
            (header::VARY, "origin"),
        ];
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.extend(rest.map(|(name, value)| (name, HeaderValue::from_static(value))));
    }
}

impl Key {
    /// Compares all of it, whatever differs first: the time tells nothing.
    fn is(&self, given: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let differs = key.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b));
        key.len() == given.len() && std::hint::black_box(differs) == 0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}
