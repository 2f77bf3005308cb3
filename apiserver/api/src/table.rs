//! Server-side tables: what `kubectl get` prints.

/// One column of a kind's table. Priority above zero shows only with `-o wide`.
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the name column, otherwise empty.
    pub format: &'static str,
    pub description: &'static str,
    pub priority: i32,
}
