package agent

// Known are the definitions that the agent of a node was told of last, as it keeps them in the node's state directory for a start with
// the API server away; none where there was no agent.
func Known(stateDir string) []Definition { return loadDefinitions(stateDir) }
