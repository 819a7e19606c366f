//! Certificates in front, read anew when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at. Whoever renews them puts new ones in their place days before the old ones expire.
const LOOK: Duration = Duration::from_secs(2);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read as PEM.
    #[error("{setting}: {file}: {why}")]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        file: String,
        /// What is the matter.
        why: String,
    },
    /// Certificate and key do not belong together, or are of a kind that cannot be used.
    #[error("gateway.tls_cert_file and gateway.tls_key_file: {0}")]
    Pair(String),
}

/// A chain and its key, as they are now.
#[derive(Debug)]
pub struct Certificates {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<Current>,
}

struct Current {
    /// What the files held.
    read: (Vec<u8>, Vec<u8>),
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Current")
    }
}

impl Certificates {
    /// Reads both files.
    ///
    /// # Errors
    /// With the setting, the file and what is wrong with it.
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Self, CertificateError> {
        // Once a process; another room may have done it before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let current = ArcSwap::from_pointee(read(cert_file, key_file)?);
        Ok(Self { cert_file: cert_file.to_owned(), key_file: key_file.to_owned(), current })
    }

    /// For the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load().config.clone())
    }

    /// Reads the files again; whether they were new. What is wrong with them is an error, and the old ones stay.
    ///
    /// # Errors
    /// As for [`Certificates::load`].
    pub fn reload(&self) -> Result<bool, CertificateError> {
        let next = read(&self.cert_file, &self.key_file)?;
        if next.read == self.current.load().read {
            return Ok(false);
        }
        self.current.store(Arc::new(next));
        Ok(true)
    }

    /// Looks at the files from now on, as long as somebody uses them. The contents decide, not the times: files that are
    /// links into a folder that is swapped have the times of another one.
    pub fn watch(self: Arc<Self>) {
        let weak = Arc::downgrade(&self);
        drop(self);
        tokio::spawn(async move {
            let mut told = String::new();
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(this) = weak.upgrade() else { break };
                let reloaded = tokio::task::spawn_blocking(move || this.reload()).await;
                match reloaded {
                    Ok(Ok(true)) => {
                        told.clear();
                        log::info!("the gateway's certificates were read anew");
                    }
                    // Half of a pair may be there already; once a fault is enough.
                    Ok(Err(error)) if error.to_string() != told => {
                        told = error.to_string();
                        log::warn!("the gateway keeps its certificates: {error}");
                    }
                    _ => {}
                }
            }
        });
    }
}

fn read(cert_file: &Path, key_file: &Path) -> Result<Current, CertificateError> {
    let wrong =
        |setting, file: &Path, why: String| CertificateError::File { setting, file: file.display().to_string(), why };
    let cert_wrong = |why| wrong("gateway.tls_cert_file", cert_file, why);
    let key_wrong = |why| wrong("gateway.tls_key_file", key_file, why);
    let cert = std::fs::read(cert_file).map_err(|error| cert_wrong(error.to_string()))?;
    let key = std::fs::read(key_file).map_err(|error| key_wrong(error.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(&cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| cert_wrong(String::from("it is no PEM")))?;
    if chain.is_empty() {
        return Err(cert_wrong(String::from("it holds no certificate")));
    }
    let private =
        PrivateKeyDer::from_pem_slice(&key).map_err(|_| key_wrong(String::from("it holds no private key")))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| CertificateError::Pair(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Current { read: (cert, key), config: Arc::new(config) })
}
