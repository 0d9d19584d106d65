package main

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw carries messages as bytes, so that no generated code is needed.
type raw struct{}

func (raw) Name() string                  { return "raw" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

const service = "/demo.Echo/"

func connect(host string) *grpc.ClientConn {
	connection, err := grpc.NewClient(host,
		grpc.WithTransportCredentials(credentials.NewTLS(nil)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		fail(err)
	}
	return connection
}

func bytes(text string) *[]byte {
	message := []byte(text)
	return &message
}

// result is what the user of a call reads at its end.
func result(call string, got []string, err error, trailer metadata.MD) {
	status := status.Convert(err)
	told(call, map[string]any{
		"code": int(status.Code()), "message": status.Message(), "got": got, "why": first(trailer.Get("why")),
	})
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

func grpcCalls(host string) {
	connection := connect(host)
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	var answer []byte
	err := connection.Invoke(ctx, service+"Unary", bytes("hello"), &answer)
	result("unary", []string{string(answer)}, err, nil)

	stream := open(ctx, connection, "ServerStreaming")
	send(stream, "3")
	_ = stream.CloseSend()
	got, err := receiveAll(stream)
	result("server streaming", got, err, stream.Trailer())

	stream = open(ctx, connection, "ClientStreaming")
	for _, message := range []string{"a", "b", "c"} {
		send(stream, message)
	}
	_ = stream.CloseSend()
	got, err = receiveAll(stream)
	result("client streaming", got, err, stream.Trailer())

	// Each message is sent only after the answer to the one before.
	stream = open(ctx, connection, "Bidirectional")
	got = nil
	for _, message := range []string{"ping", "pong"} {
		send(stream, message)
		var answer []byte
		if err = stream.RecvMsg(&answer); err != nil {
			break
		}
		got = append(got, string(answer))
	}
	_ = stream.CloseSend()
	if err == nil {
		_, err = receiveAll(stream)
	}
	result("bidirectional", got, err, stream.Trailer())

	brief, cancelBrief := context.WithTimeout(ctx, 3*time.Second)
	err = connection.Invoke(brief, service+"Slow", bytes(""), &answer)
	cancelBrief()
	result("deadline", nil, err, nil)

	var trailer metadata.MD
	err = connection.Invoke(ctx, service+"Fails", bytes(""), &answer, grpc.Trailer(&trailer))
	result("status", nil, err, trailer)
}

func unary(host string) {
	connection := connect(host)
	defer connection.Close()
	var answer []byte
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := connection.Invoke(ctx, service+"Unary", bytes("hello"), &answer); err != nil {
		fail(err)
	}
}

func open(ctx context.Context, connection *grpc.ClientConn, method string) grpc.ClientStream {
	both := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := connection.NewStream(ctx, both, service+method)
	if err != nil {
		fail(err)
	}
	return stream
}

func send(stream grpc.ClientStream, text string) {
	if err := stream.SendMsg(bytes(text)); err != nil && err != io.EOF {
		fail(err)
	}
}

func receiveAll(stream grpc.ClientStream) ([]string, error) {
	var got []string
	for {
		var answer []byte
		err := stream.RecvMsg(&answer)
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		got = append(got, string(answer))
	}
}
