package admin

import (
	"context"
	"slices"
)

// Routes are the methods and paths that are answered, such as "GET /api/v1/status".
func (s *Server) Routes() (all []string) {
	for path, methods := range newGuard(s, context.Background(), Address{}).routes.methods {
		for _, m := range methods {
			all = append(all, m+" "+path)
		}
	}
	slices.Sort(all)
	return all
}
