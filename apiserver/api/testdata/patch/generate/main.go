// Command generate prints the cases of a file such as ../strategic.json again, each with the result, or the error, that
// the original gives. To regenerate:
//
//	mkdir /tmp/generate && cp main.go /tmp/generate && cd /tmp/generate && go mod init generate
//	go get k8s.io/api@v0.35.0 k8s.io/apimachinery@v0.35.0
//	go run . .../strategic.json
package main

import (
	"encoding/json"
	"fmt"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

type Case struct {
	Name    string          `json:"name"`
	Type    string          `json:"type"`
	Current json.RawMessage `json:"current"`
	Patch   json.RawMessage `json:"patch"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   string          `json:"error,omitempty"`
}

func main() {
	raw, _ := os.ReadFile(os.Args[1])
	var cases []Case
	if err := json.Unmarshal(raw, &cases); err != nil {
		panic(err)
	}
	types := map[string]any{"Pod": corev1.Pod{}, "Deployment": appsv1.Deployment{}, "Service": corev1.Service{}, "Node": corev1.Node{}, "ServiceAccount": corev1.ServiceAccount{}, "ConfigMap": corev1.ConfigMap{}, "PodDisruptionBudget": policyv1.PodDisruptionBudget{}, "Secret": corev1.Secret{}, "Namespace": corev1.Namespace{}}
	fmt.Println("[")
	for i, c := range cases {
		t, ok := types[c.Type]
		if !ok {
			panic(c.Type)
		}
		out, err := strategicpatch.StrategicMergePatch(c.Current, c.Patch, t)
		c.Result, c.Error = nil, ""
		if err != nil {
			c.Error = err.Error()
		} else {
			c.Result = out
		}
		b, _ := json.Marshal(c)
		sep := ","
		if i == len(cases)-1 {
			sep = ""
		}
		fmt.Println(string(b) + sep)
	}
	fmt.Println("]")
}
