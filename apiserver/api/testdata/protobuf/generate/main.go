// Command generate writes bodies as Go clients send them: for each kind an object with no field set (`zero`) and one
// with every field set (`full`), in protobuf and in JSON, the JSON less what src/protobuf.rs says stands for nothing.
// A part of the output is kept here; to check all of it, run the tests with all of it here. To regenerate:
//
//	mkdir /tmp/generate && cp main.go /tmp/generate && cd /tmp/generate && go mod init generate
//	go get k8s.io/api@v0.35.0 k8s.io/apimachinery@v0.35.0 k8s.io/client-go@v0.35.0 k8s.io/apiextensions-apiserver@v0.35.0
//	go run . <output directory>
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
)

var n int

func fill(v reflect.Value, depth int, seen map[reflect.Type]int) {
	n++
	switch x := v.Addr().Interface().(type) {
	case *metav1.Time:
		*x = metav1.Unix(1700000000+int64(n), 123456789)
		return
	case *metav1.MicroTime:
		*x = metav1.NewMicroTime(time.Unix(1700000000+int64(n), 1234567))
		return
	case *metav1.Duration:
		x.Duration = time.Duration(n) * 1234567 * time.Microsecond
		return
	case *metav1.FieldsV1:
		x.Raw = []byte(`{"f:metadata":{"f:labels":{".":{}}}}`)
		return
	case *resource.Quantity:
		*x = resource.MustParse([]string{"1500m", "2Gi", "3", "100k"}[n%4])
		return
	case *intstr.IntOrString:
		if n%2 == 0 {
			*x = intstr.FromInt32(int32(n))
		} else {
			*x = intstr.FromString("25%")
		}
		return
	case *runtime.RawExtension:
		x.Raw = []byte(`{"a":{"b":[1,"x",null,true]}}`)
		return
	case *apiextensions.JSON:
		x.Raw = []byte(`[{"a":1.5},"b",false]`)
		return
	case *apiextensions.JSONSchemaPropsOrArray:
		if seen[v.Type()]++; seen[v.Type()]%2 == 0 {
			x.Schema = &apiextensions.JSONSchemaProps{Type: "string"}
		} else {
			x.JSONSchemas = []apiextensions.JSONSchemaProps{{Type: "string"}, {Title: "t"}}
		}
		return
	case *apiextensions.JSONSchemaPropsOrBool:
		switch seen[v.Type()]++; seen[v.Type()] % 3 {
		case 0:
			x.Allows = true
		case 1:
			x.Schema = &apiextensions.JSONSchemaProps{Type: "string"}
			x.Allows = true
		}
		return
	case *apiextensions.JSONSchemaPropsOrStringArray:
		if seen[v.Type()]++; seen[v.Type()]%2 == 0 {
			x.Property = []string{"p", "q"}
		} else {
			x.Schema = &apiextensions.JSONSchemaProps{Type: "string"}
		}
		return
	case *metav1.TypeMeta:
		return
	}
	if depth > 12 {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if seen[v.Type()] > 0 && v.Type() == reflect.TypeOf(apiextensions.JSONSchemaProps{}) && depth > 8 {
			return
		}
		seen[v.Type()]++
		for i := 0; i < v.NumField(); i++ {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), depth+1, seen)
			}
		}
	case reflect.Ptr:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1, seen)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{0, 255, byte(n), 'x'})
			return
		}
		count := 2
		if seen[v.Type().Elem()] > 2 {
			count = 1
		}
		v.Set(reflect.MakeSlice(v.Type(), count, count))
		for i := 0; i < count; i++ {
			fill(v.Index(i), depth+1, seen)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for i := 0; i < 2; i++ {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(k, depth+1, seen)
			fill(e, depth+1, seen)
			v.SetMapIndex(k, e)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d-é", n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64, reflect.Int:
		i := int64(n)
		if n%3 == 0 {
			i = -i
		}
		v.SetInt(i)
	case reflect.Float64:
		v.SetFloat(float64(n) + 0.25)
	case reflect.Interface:
	default:
		panic(v.Type())
	}
}

// prune drops from Go's JSON what is null, and what stands for an unset struct that is no pointer.
func prune(j any, t reflect.Type) any {
	for t.Kind() == reflect.Ptr {
		t = t.Elem()
	}
	if t.Implements(reflect.TypeOf((*json.Marshaler)(nil)).Elem()) || reflect.PointerTo(t).Implements(reflect.TypeOf((*json.Marshaler)(nil)).Elem()) {
		if !strings.HasPrefix(t.Name(), "JSONSchemaPropsOr") {
			return j
		}
		switch x := j.(type) {
		case map[string]any:
			return prune(x, reflect.TypeOf(apiextensions.JSONSchemaProps{}))
		}
		return j
	}
	switch x := j.(type) {
	case map[string]any:
		if t.Kind() == reflect.Map {
			for k, v := range x {
				x[k] = prune(v, t.Elem())
			}
			return x
		}
		pruneStruct(x, t)
		return x
	case []any:
		for i, v := range x {
			x[i] = prune(v, t.Elem())
		}
	}
	return j
}

func pruneStruct(x map[string]any, t reflect.Type) {
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		tag := strings.Split(f.Tag.Get("json"), ",")
		if f.Anonymous && tag[0] == "" {
			pruneStruct(x, f.Type)
			continue
		}
		v, ok := x[tag[0]]
		if !ok {
			continue
		}
		v = prune(v, f.Type)
		x[tag[0]] = v
		m, isMap := v.(map[string]any)
		omitempty := strings.Contains(f.Tag.Get("json"), "omitempty")
		if v == nil || omitempty && f.Type.Kind() == reflect.Struct && (isMap && len(m) == 0 && f.Type != reflect.TypeOf(runtime.RawExtension{}) || f.Type == reflect.TypeOf(intstr.IntOrString{}) && v == 0.0) {
			delete(x, tag[0])
		}
	}
}

func write(dir, name string, o runtime.Object, gvk schema.GroupVersionKind) {
	o.GetObjectKind().SetGroupVersionKind(gvk)
	ser := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	var b bytes.Buffer
	if err := ser.Encode(o, &b); err != nil {
		fmt.Println("skip", name, err)
		return
	}
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var j any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&j); err != nil {
		panic(err)
	}
	j = prune(fixNumbers(j), reflect.TypeOf(o))
	out, _ := json.Marshal(j)
	os.WriteFile(dir+"/"+name+".pb", b.Bytes(), 0644)
	os.WriteFile(dir+"/"+name+".json", append(out, '\n'), 0644)
}

func fixNumbers(j any) any {
	switch x := j.(type) {
	case json.Number:
		if i, err := x.Int64(); err == nil {
			if i == 0 {
				return 0.0
			}
			return i
		}
		f, _ := x.Float64()
		return f
	case map[string]any:
		for k, v := range x {
			x[k] = fixNumbers(v)
		}
	case []any:
		for i, v := range x {
			x[i] = fixNumbers(v)
		}
	}
	return j
}

func main() {
	dir := os.Args[1]
	os.MkdirAll(dir, 0755)
	apiextensions.AddToScheme(scheme.Scheme)
	want := map[string]bool{"/v1": true, "apps/v1": true, "discovery.k8s.io/v1": true, "coordination.k8s.io/v1": true, "events.k8s.io/v1": true, "policy/v1": true, "batch/v1": true, "networking.k8s.io/v1": true, "rbac.authorization.k8s.io/v1": true, "storage.k8s.io/v1": true, "autoscaling/v1": true, "autoscaling/v2": true, "authentication.k8s.io/v1": true, "authorization.k8s.io/v1": true, "scheduling.k8s.io/v1": true, "node.k8s.io/v1": true, "certificates.k8s.io/v1": true, "admissionregistration.k8s.io/v1": true, "apiextensions.k8s.io/v1": true, "resource.k8s.io/v1": true, "flowcontrol.apiserver.k8s.io/v1": true}
	kinds := []schema.GroupVersionKind{}
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if want[gvk.Group+"/"+gvk.Version] && !strings.HasSuffix(gvk.Kind, "Options") && gvk.Kind != "WatchEvent" || gvk.Kind == "DeleteOptions" && gvk.Group == "apps" && gvk.Version == "v1" {
			kinds = append(kinds, gvk)
		}
	}
	sort.Slice(kinds, func(i, j int) bool { return kinds[i].String() < kinds[j].String() })
	for _, gvk := range kinds {
		group := strings.Split(gvk.Group, ".")[0]
		if group == "" {
			group = "core"
		}
		name := group + "." + gvk.Version + "." + gvk.Kind
		o, err := scheme.Scheme.New(gvk)
		if err != nil {
			panic(err)
		}
		write(dir, name+".zero", o, gvk)
		n = 0
		fill(reflect.ValueOf(o).Elem(), 0, map[reflect.Type]int{})
		write(dir, name+".full", o, gvk)
	}
	// What `kubectl create deployment` sends.
	one := int32(1)
	labels := map[string]string{"app": "web"}
	write(dir, "apps.v1.Deployment.typical", &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: labels},
		Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "nginx", Image: "nginx:latest"}}}}}},
		schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"})
}
