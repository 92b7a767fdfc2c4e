// cri asks a CRI runtime what a kubelet asks it about images: pull, remove, list.
//
//	cri SOCKET pull IMAGE     prints the image's id
//	cri SOCKET remove IMAGE
//	cri SOCKET list           prints one name or id a line
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: cri SOCKET pull|remove|list [IMAGE]")
	}
	connection, err := grpc.NewClient("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	images := runtime.NewImageServiceClient(connection)
	switch {
	case args[1] == "list":
		return list(ctx, images)
	case len(args) != 3:
		return fmt.Errorf("%s needs an image", args[1])
	case args[1] == "pull":
		return pull(ctx, images, args[2])
	case args[1] == "remove":
		_, err := images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: spec(args[2])})
		return err
	default:
		return fmt.Errorf("unknown verb %q", args[1])
	}
}

func list(ctx context.Context, images runtime.ImageServiceClient) error {
	answer, err := images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, image := range answer.Images {
		fmt.Println(image.Id)
		for _, name := range append(image.RepoTags, image.RepoDigests...) {
			fmt.Println(name)
		}
	}
	return nil
}

func pull(ctx context.Context, images runtime.ImageServiceClient, image string) error {
	answer, err := images.PullImage(ctx, &runtime.PullImageRequest{Image: spec(image)})
	if err != nil {
		return err
	}
	fmt.Println(answer.ImageRef)
	return nil
}

func spec(image string) *runtime.ImageSpec {
	return &runtime.ImageSpec{Image: image}
}
