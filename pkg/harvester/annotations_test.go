package harvester

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAnnotationsFor(t *testing.T) {
	o := &Object{Value: `{"vlan": 100}`}
	first := o.AnnotationsFor("ns/a")
	assert.Equal(t, map[string]string{AnnotationHash: "ff6b77527b1cb5214bb00704ad9563da6959392f", AnnotationNetwork: "ns/a", AnnotationOldNetwork: ""}, first, "the hash is what sha1sum says")
	assert.Nil(t, o.Annotations, "the object is as it was")
	assert.NotEqual(t, first[AnnotationHash], (&Object{Value: `{"vlan":100}`}).AnnotationsFor("ns/a")[AnnotationHash], "white space counts")

	o.Annotations = first
	second := o.AnnotationsFor("ns/b")
	assert.Equal(t, "ns/b", second[AnnotationNetwork])
	assert.Equal(t, "ns/a", second[AnnotationOldNetwork])
	o.Annotations = second
	assert.Equal(t, second, o.AnnotationsFor("ns/b"), "twice is as good as once: the old network isn't lost")
}

func TestConditionsFor(t *testing.T) {
	o := &Object{}
	o.Status.Conditions = []Condition{{Type: "other", Status: "True"}}
	at := time.Unix(1_800_000_000, 0)
	o.Status.Conditions = o.ConditionsFor(InProgress, MessageSetting, at)
	c, ok := o.Configured()
	assert.True(t, ok)
	assert.Equal(t, Condition{Type: ConditionConfigured, Status: "False", Reason: "In Progress", Message: "Update Longhorn setting", LastUpdate: "2027-01-15T08:00:00Z", LastTransition: "2027-01-15T08:00:00Z"}, c)
	assert.Len(t, o.Status.Conditions, 2)

	o.Status.Conditions = o.ConditionsFor(InProgress, MessageRestart, at.Add(time.Minute))
	c, _ = o.Configured()
	assert.Equal(t, "2027-01-15T08:00:00Z", c.LastTransition, "it is still False")
	assert.Equal(t, "2027-01-15T08:01:00Z", c.LastUpdate)
	assert.Equal(t, o.Status.Conditions, o.ConditionsFor(InProgress, MessageRestart, at.Add(time.Hour)), "nothing new, nothing written")

	c = o.ConditionsFor(Completed, "", at.Add(time.Hour))[1]
	assert.Equal(t, "True", c.Status)
	assert.Equal(t, "2027-01-15T09:00:00Z", c.LastTransition)
}
