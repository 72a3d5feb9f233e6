//! The backends by name: the one file that knows which are compiled in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use llama_backend::{Backend, Device};

use crate::Error;

/// The backends of this project, each with the Cargo feature of its name. Others are handed to
/// [`LlamaBuilder::custom_backend`](crate::LlamaBuilder::custom_backend).
///
/// Backend | Engine | What it needs beside the feature
/// --- | --- | ---
/// [`Candle`](Self::Candle) | candle | nothing; the feature is on by default
/// [`Tch`](Self::Tch) | libtorch 2.13.0 | the library, at build time (`LIBTORCH`) and at run time (rpath, `LD_LIBRARY_PATH`)
///
/// ```
/// use llama_core::BackendKind;
///
/// assert_eq!("candle".parse::<BackendKind>().unwrap(), BackendKind::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BackendKind {
    /// The candle backend: the default, whichever features are on.
    #[default]
    Candle,
    /// The libtorch backend.
    Tch,
}

impl BackendKind {
    /// Every backend, compiled in or not.
    pub const ALL: &'static [Self] = &[Self::Candle, Self::Tch];

    /// The backend's name, which is its Cargo feature too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Candle => "candle",
            Self::Tch => "tch",
        }
    }

    /// The backend on a device.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFeature`] when it is not compiled in; [`Error::Backend`] when it does not have the device.
    pub fn open(self, device: Device) -> Result<Arc<dyn Backend>, Error> {
        match self {
            #[cfg(feature = "candle")]
            Self::Candle => Ok(Arc::new(llama_backend_candle::CandleBackend::new(device)?)),
            #[cfg(feature = "tch")]
            Self::Tch => Ok(Arc::new(llama_backend_tch::TchBackend::new(device)?)),
            #[allow(unreachable_patterns, reason = "reached for each backend that is not compiled in")]
            missing => {
                let _ = device;
                Err(Error::MissingFeature { backend: missing.name(), feature: missing.name() })
            }
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|kind| kind.name()).collect();
            Error::option("backend", format!("{name:?}"), format!("one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for &kind in BackendKind::ALL {
            assert_eq!(kind.name().parse::<BackendKind>().unwrap(), kind);
        }
        let error = "torch".parse::<BackendKind>().unwrap_err().to_string();
        assert!(BackendKind::ALL.iter().all(|kind| error.contains(kind.name())), "{error}");
    }

    #[test]
    fn a_backend_opens_or_names_its_feature() {
        let compiled_in = |kind| match kind {
            BackendKind::Candle => cfg!(feature = "candle"),
            BackendKind::Tch => cfg!(feature = "tch"),
        };
        for &kind in BackendKind::ALL {
            match kind.open(Device::Cpu) {
                Ok(backend) => assert_eq!((compiled_in(kind), backend.name()), (true, kind.name())),
                Err(error) => {
                    assert!(!compiled_in(kind) && error.is_missing_feature(), "{kind}: {error}");
                    assert!(error.to_string().contains(&format!("feature `{kind}`")), "{error}");
                }
            }
        }
    }
}
