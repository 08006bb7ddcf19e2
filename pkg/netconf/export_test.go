package netconf

// Names for the tests outside this package.
var SchemaAccepts = schemaAccepts
