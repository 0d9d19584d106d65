//! Documents compiled to Cedar, and the decision. Pure; used by proxy, control plane and command line alike.
