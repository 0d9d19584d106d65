//! The variables by which runtimes are told whom to trust: the one list of them, for `countersign doctor`, for whoever
//! sets them, and for docs/trust.md.
//!
//! No variable is read by more than a few runtimes, so all nine are set. All but one replace the runtime's own roots, so
//! what they point at holds those too, never our CA alone.

/// One variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it is to say.
    pub form: Form,
    /// The runtimes that read it, by the names that `countersign doctor` has for them. Each was seen to.
    pub read_by: &'static [&'static str],
    /// Whether it takes the place of the runtime's own roots.
    pub replaces: bool,
}

/// What a variable says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The path of the PEM bundle.
    Pem,
    /// Options of the JVM that name the PKCS#12. Without the password Java takes nothing from it.
    Java,
}

/// All of them.
pub const VARIABLES: [Variable; 9] = [
    Variable {
        name: "SSL_CERT_FILE",
        form: Form::Pem,
        read_by: &["curl", "openssl", "python ssl", "go", "cargo"],
        replaces: true,
    },
    Variable {
        name: "CURL_CA_BUNDLE",
        form: Form::Pem,
        read_by: &["curl", "python requests", "pip"],
        replaces: true,
    },
    Variable {
        name: "REQUESTS_CA_BUNDLE",
        form: Form::Pem,
        read_by: &["python requests", "python boto3", "pip"],
        replaces: true,
    },
    Variable { name: "AWS_CA_BUNDLE", form: Form::Pem, read_by: &["python boto3"], replaces: true },
    Variable { name: "NODE_EXTRA_CA_CERTS", form: Form::Pem, read_by: &["node"], replaces: false },
    Variable { name: "GIT_SSL_CAINFO", form: Form::Pem, read_by: &["git"], replaces: true },
    Variable { name: "PIP_CERT", form: Form::Pem, read_by: &["pip"], replaces: true },
    Variable { name: "CARGO_HTTP_CAINFO", form: Form::Pem, read_by: &["cargo"], replaces: true },
    Variable { name: "JAVA_TOOL_OPTIONS", form: Form::Java, read_by: &["java"], replaces: true },
];

/// Where the proxy writes its bundle, unless it is told otherwise.
pub const BUNDLE: &str = "/run/countersign/trust/ca-bundle.pem";

/// The password of the PKCS#12, unless the proxy is told otherwise.
pub const BUNDLE_PASSWORD: &str = "changeit";

/// Where the bundle is, in its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// PEM.
    pub pem: String,
    /// PKCS#12.
    pub pkcs12: String,
    /// Its password.
    pub password: String,
}

impl Bundle {
    /// The one at this path, with the PKCS#12 beside it, ending in `.p12`.
    #[must_use]
    pub fn at(pem: &str) -> Self {
        let pkcs12 = std::path::Path::new(pem).with_extension("p12").display().to_string();
        Self { pem: pem.to_owned(), pkcs12, password: BUNDLE_PASSWORD.to_owned() }
    }
}

impl Variable {
    /// What it is to say for a bundle.
    #[must_use]
    pub fn value(&self, bundle: &Bundle) -> String {
        match self.form {
            Form::Pem => bundle.pem.clone(),
            Form::Java => format!(
                "-Djavax.net.ssl.trustStore={} -Djavax.net.ssl.trustStorePassword={}",
                bundle.pkcs12, bundle.password
            ),
        }
    }
}

/// The variables that a runtime reads.
pub fn read_by(runtime: &str) -> impl Iterator<Item = &'static Variable> {
    VARIABLES.iter().filter(move |variable| variable.read_by.contains(&runtime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_all_of_them_with_their_runtimes() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/trust.md")).unwrap();
        for variable in &VARIABLES {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{}` |", variable.name)));
            let row = row.unwrap_or_else(|| panic!("docs/trust.md has no row for {}", variable.name));
            for runtime in variable.read_by {
                assert!(row.contains(runtime), "{row} lacks {runtime}");
            }
        }
    }

    #[test]
    fn values() {
        let bundle = Bundle::at("/t/ca-bundle.pem");
        assert_eq!(VARIABLES[0].value(&bundle), "/t/ca-bundle.pem");
        assert_eq!(
            VARIABLES[8].value(&bundle),
            "-Djavax.net.ssl.trustStore=/t/ca-bundle.p12 -Djavax.net.ssl.trustStorePassword=changeit"
        );
        assert_eq!(read_by("java").map(|v| v.name).collect::<Vec<_>>(), ["JAVA_TOOL_OPTIONS"]);
    }
}
